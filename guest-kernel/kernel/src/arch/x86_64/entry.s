# Entry and exit of the kernel.
#
# An entry from user mode finds RSP at the end of the running thread's frame (TSS.RSP0), so the
# pushes of the CPU and of this file store the registers where they stay: nothing is copied.
# trap() then runs on the kernel's one stack and returns the frame to resume, or 0 to idle; or it
# jumps to resume_frame with the frame in RAX.
# The layout is bulkhead_kernel_core::frame::Frame. No instruction here may fault.

# First instruction, by the boot protocol: RDI is the address of the BootInfo.
    .section .text.start, "ax"
    .globl kernel_start
kernel_start:
    lea rsp, [rip + kernel_stack_end]
    xor ebp, ebp
    call start
    jmp resume

# One stub a vector, 16 bytes each. Vectors 8, 10 to 14, 17, 21, 29 and 30 push an error code.
    .section .text.stubs, "ax"
    .globl interrupt_stubs
    .balign 4096
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30
    push 0
    .endif
    push vector
    .if vector == 2 || vector == 8 || vector == 18
    jmp emergency
    .else
    jmp entry
    .endif
    .set vector, vector + 1
    .endr
    .balign 16
    .globl interrupt_stubs_end
interrupt_stubs_end:

    .section .text.entry, "ax"
    .macro store_registers
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    .endm

# NMI, double fault and machine check come with a stack of their own (idt.rs): whatever they
# interrupted, they end the kernel.
emergency:
    store_registers
    jmp from_kernel

entry:
    store_registers
    test byte ptr [rsp + {frame_cs}], 3
    jz from_kernel
    lea rsp, [rip + kernel_stack_end]
    call trap
resume:
    test rax, rax
    jz idle
    .globl resume_frame
resume_frame:
    mov rsp, rax
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    # vector and error code
    add rsp, 16
    iretq

# Only the idle loop is ever interrupted; it holds nothing, so its frame is dropped afterwards.
# Everything else that comes from the kernel is its own fault.
from_kernel:
    and rsp, -16
    call kernel_trap
    jmp resume

idle:
    lea rsp, [rip + kernel_stack_end]
    sti
    hlt
    # An interrupt always leads away from here. Waking without one means waiting again.
    cli
    jmp idle

# Target of `syscall` where the CPU honours its change of privilege: CPL 0, the user's RSP, RIP in
# RCX, RFLAGS in R11, interrupts off by SFMASK. Where it does not, the fetch from this supervisor
# page faults at CPL 3 and arrives at stub 14, see trap.rs: nothing here is reached unprivileged.
    .globl syscall_entry
    .balign 16
syscall_entry:
    mov qword ptr [rip + syscall_user_rsp], rsp
    mov rsp, qword ptr [rip + TASK_STATE + {task_rsp0}]
    push {user_data}
    push qword ptr [rip + syscall_user_rsp]
    push r11
    push {user_code}
    push rcx
    push 0
    push {syscall}
    jmp entry

    .section .bss.stack, "aw", @nobits
    .balign 16
kernel_stack:
    .skip {stack_bytes}
kernel_stack_end:
    .balign 8
syscall_user_rsp:
    .skip 8
