# The event channels' interrupt, and the sleep that it ends.

.section .text.upcall, "ax"
.code64
# An event is pending. That alone ends the executor's sleep, and the executor asks for the events
# itself; so only Xen's note that it has interrupted is taken back. A callback by vector needs no end
# of interrupt.
#
# `sti` holds interrupts back until the instruction after it, the `hlt`, is executed, so that no event can
# be handled between the two and then be slept on. Emulated processors do not always keep that
# promise: QEMU's, under a nested hypervisor, lets Xen inject right after `sti`. An interrupt that
# finds the `hlt` still to be executed therefore goes on behind it.
.global event_upcall
event_upcall:
    push    rax
    mov     rax, [rip + upcall_pending]
    mov     byte ptr [rax], 0
    lea     rax, [rip + 2f]
    cmp     [rsp + 8], rax      # the interrupted instruction
    jne     1f
    lea     rax, [rip + 3f]
    mov     [rsp + 8], rax
1:  pop     rax
    iretq

# extern "C" fn halt_until_interrupt(): sleeps, with interrupts on only for that long, until one comes.
.global halt_until_interrupt
halt_until_interrupt:
    sti
2:  hlt
3:  cli
    ret
