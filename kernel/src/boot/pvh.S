# From Xen's PVH entry to Rust.
#
# Xen (docs/misc/pvh) starts the domain's first vCPU at the address in the note below: 32-bit
# protected mode, flat segments, no paging, interrupts off, and the physical address of
# `hvm_start_info` in ebx. This file enters 64-bit mode with everything below 4 GiB identity-mapped,
# writable and executable, until memory/paging.rs sets up tables with fewer rights.

.section .note.Xen, "a", @note
    .balign 4
    .long 4                     # bytes of the name
    .long 8                     # bytes of the value
    .long 18                    # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

.section .text.boot, "ax"
.code32
.global pvh_start
pvh_start:
    cli
    cld
    mov     esp, offset stack_top
    mov     esi, ebx
    rdtsc                       # the start of the boot, for stages.rs
    mov     dword ptr [entry_tsc], eax
    mov     dword ptr [entry_tsc + 4], edx

    # The loader zeroed bss, so only other entries are written. 0x3: present, writable.
    mov     eax, offset boot_pdpt
    or      eax, 0x3
    mov     dword ptr [boot_pml4], eax

    mov     eax, offset boot_pd
    or      eax, 0x3
    mov     edi, offset boot_pdpt
    mov     ecx, 4
1:  mov     dword ptr [edi], eax
    add     eax, 4096
    add     edi, 8
    dec     ecx
    jnz     1b

    # 4 directories of 512 entries, 2 MiB each. 0x83: present, writable, a large page.
    mov     eax, 0x83
    mov     edi, offset boot_pd
    mov     ecx, 2048
2:  mov     dword ptr [edi], eax
    add     eax, 0x200000
    add     edi, 8
    dec     ecx
    jnz     2b

    # Switches off floating point registers: nothing saves them, and soft-float code does not use
    # them. OSFXSR and OSXSAVE disable SSE and AVX, EM and TS disable x87.
    mov     eax, cr4
    and     eax, 0xfffbf9ff     # OSXSAVE, OSXMMEXCPT, OSFXSR
    or      eax, 0x20           # PAE
    mov     cr4, eax
    mov     eax, offset boot_pml4
    mov     cr3, eax
    mov     ecx, 0xc0000080     # EFER
    rdmsr
    or      eax, 0x900          # LME, NXE
    wrmsr
    mov     eax, cr0
    or      eax, 0x8001000e     # PG, WP; TS, EM, MP
    mov     cr0, eax

    lgdt    [boot_gdt_pointer]
    push    0x08
    mov     eax, offset long_mode
    push    eax
    retf

.code64
long_mode:
    mov     eax, 0x10
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    xor     eax, eax
    mov     fs, eax
    mov     gs, eax
    lea     rsp, [rip + stack_top]
    xor     ebp, ebp
    mov     edi, esi            # start(start_info: u32)
    call    start
    ud2                         # `start` does not return

.section .rodata.boot, "a"
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08: 64-bit code
    .quad 0x00cf93000000ffff    # 0x10: data
boot_gdt_pointer:
    .short boot_gdt_pointer - boot_gdt - 1
    .long boot_gdt

.section .bss.boot, "aw", @nobits
    .balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 4096 * 4
.global entry_tsc
entry_tsc: .skip 8

# Each stack is above a guard page, so that an overflow faults instead of overwriting data. The
# three small stacks are for exceptions that must not use the interrupted stack. memory/image.rs
# lists them.
.section .stacks, "aw", @nobits
    .balign 4096
.global stack_guard, stack_top
stack_guard: .skip 4096
    .skip 256 * 1024
stack_top:
.global double_fault_stack_guard, double_fault_stack_top
double_fault_stack_guard: .skip 4096
    .skip 16 * 1024
double_fault_stack_top:
.global nmi_stack_guard, nmi_stack_top
nmi_stack_guard: .skip 4096
    .skip 16 * 1024
nmi_stack_top:
.global page_fault_stack_guard, page_fault_stack_top
page_fault_stack_guard: .skip 4096
    .skip 16 * 1024
page_fault_stack_top:
