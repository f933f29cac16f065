# The event channels' interrupt, and the sleep that it ends.

.section .text.upcall, "ax"
.code64
# The handler only clears Xen's note that it has made the upcall: the interrupt ends the executor's
# sleep, and the executor looks for events itself. A callback by vector needs no end of interrupt.
#
# `sti` delays interrupts until after the next instruction, the `hlt`. Otherwise an event between
# the two would be handled, and the CPU would then sleep. Emulated processors do not always delay:
# under a nested hypervisor, QEMU lets Xen inject right after `sti`. So an upcall before the `hlt`
# returns to the instruction after it.
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

# extern "C" fn halt_until_interrupt(): enables interrupts and sleeps until one arrives.
.global halt_until_interrupt
halt_until_interrupt:
    sti
2:  hlt
3:  cli
    ret
