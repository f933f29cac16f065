# The first instructions of every exception.

# Some vectors push an error code. The others push 0, so that all frames have the same layout
# (`Frame` in exceptions.rs).
.macro stub vector, has_code
exception_\vector:
    .if \has_code == 0
    push    0
    .endif
    push    \vector
    jmp     exception_common
.endm

.section .text.exceptions, "ax"
.code64
.irp vector, 0,1,2,3,4,5,6,7,9,15,16,18,19,20,22,23,24,25,26,27,28,31
    stub    \vector, 0
.endr
.irp vector, 8,10,11,12,13,14,17,21,29,30
    stub    \vector, 1
.endr

exception_common:
    push    rax
    push    rbx
    push    rcx
    push    rdx
    push    rsi
    push    rdi
    push    rbp
    push    r8
    push    r9
    push    r10
    push    r11
    push    r12
    push    r13
    push    r14
    push    r15
    cld
    mov     rdi, rsp
    and     rsp, -16
    call    exception
    ud2                         # `exception` does not return

.section .rodata.exceptions, "a"
    .balign 8
.global exception_stubs
exception_stubs:
.irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .quad   exception_\vector
.endr
