# Entry and exit of the kernel, and the first steps of every CPU.
#
# An entry from user mode finds RSP at the end of the running thread's frame (TSS.RSP0), so the
# pushes of the CPU and of this file store the registers where they stay: nothing is copied.
# A function of trap.rs then runs on the stack of the CPU, which the frame knows, and returns the
# frame to resume, or 0 to idle; or it jumps to resume_frame with the frame in RAX. What is frequent,
# system calls and the page faults that some hosts make of them, has an entry of its own. Which
# functions these are, smp.rs has set: where there are several CPUs they take its lock first.
# The layout is bulkhead_kernel_core::frame::Frame. No instruction here may fault.

# First instruction, by the boot protocol: RDI is the address of the BootInfo.
    .section .text.start, "ax"
    .globl kernel_start
kernel_start:
    lea rsp, [rip + AREAS + {cpu}]
    xor ebp, ebp
    call start
    jmp resume

# The first instruction of other CPUs in 64-bit mode at the kernel's addresses. RSP: the CPU.
    .globl secondary_start
secondary_start:
    mov rdi, rsp
    xor ebp, ebp
    call start_secondary
    jmp resume

# Where other CPUs begin: copied to physical address 0, in real mode (Intel SDM volume 3, section
# 9.4.4). The tables have an identity map of this page while they do.
    .section .rodata.trampoline, "a"
    .globl trampoline
    .balign 8
trampoline:
    .code16
    jmp trampoline_16
    # smp.rs knows that its Parameters are at 8, and this code that they have 24 bytes.
    .balign 8
trampoline_cpu:
    .quad 0
trampoline_target:
    .quad 0
    # root, CR4
    .long 0, 0
    # At 32 a descriptor table, at 48 the pointer to it.
    .quad 0, {code}
    .word 15
    .long 32
trampoline_16:
    cli
    xor eax, eax
    mov ds, ax
    lgdt [48]
    mov eax, dword ptr [28]
    mov cr4, eax
    mov eax, dword ptr [24]
    mov cr3, eax
    mov ecx, {msr_efer}
    rdmsr
    or eax, {efer}
    wrmsr
    mov eax, {cr0}
    mov cr0, eax
    # A far jump to 64-bit code, spelled out.
    .byte 0x66, 0xea
    .long trampoline_64 - trampoline
    .word 8
    .code64
trampoline_64:
    mov rsp, qword ptr [rip + trampoline_cpu]
    jmp qword ptr [rip + trampoline_target]
    .globl trampoline_end
trampoline_end:

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
    .elseif vector == 14
    jmp page_fault_entry
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
    .endm

# NMI, double fault and machine check come with a stack of their own (idt.rs): whatever they
# interrupted, they end the kernel.
emergency:
    store_registers
    jmp from_kernel

# From user mode RSP is now at R15 of the running thread's frame. Goes on with a function that is
# given the frame and returns the next one, on the CPU's stack.
    .macro enter function
    lea rdi, [rsp - {frame_r15}]
    mov rsp, [rdi + {frame_cpu}]
    call qword ptr [rip + DOORS + \function]
    .endm

entry:
    store_registers
    test byte ptr [rsp + {frame_cs} - {frame_r15}], 3
    jz from_kernel
    enter {interrupted}
    jmp resume

from_syscall:
    store_registers
    enter {system_call}
    jmp resume

page_fault_entry:
    store_registers
    test byte ptr [rsp + {frame_cs} - {frame_r15}], 3
    jz from_kernel
    enter {page_fault}
resume:
    test rax, rax
    jz idle
    .globl resume_frame
resume_frame:
    lea rsp, [rax + {frame_r15}]
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

# Another CPU can enter the kernel from here on. What it does to the thread it does after this CPU
# has let it run: it has to call it into the kernel first.
    .globl unlock_and_resume
unlock_and_resume:
    mov byte ptr [rip + LOCK], 0
    jmp resume_frame

# Only the idle loop is ever interrupted; it holds nothing, so its frame is dropped afterwards.
# Everything else that comes from the kernel is its own fault.
from_kernel:
    sub rsp, {frame_r15}
    mov rdi, rsp
    and rsp, -16
    call kernel_trap
    jmp resume

# The stack begins again, below what the CPU has at the end of its area.
idle:
    or rsp, {area_bytes} - 1
    sub rsp, {area_bytes} - 1 - {cpu}
    sti
    hlt
    # An interrupt always leads away from here. Waking without one means waiting again.
    cli
    jmp idle

# What `syscall` left in registers, behind SS and RSP of the program's frame.
    .macro enter_by_syscall
    push r11
    push {user_code}
    push rcx
    push 0
    push {syscall}
    jmp from_syscall
    .endm

# Target of `syscall` where the CPU honours its change of privilege: CPL 0, the user's RSP, RIP in
# RCX, RFLAGS in R11, interrupts off by SFMASK. Where it does not, the fetch from this supervisor
# page faults at CPL 3 and arrives at stub 14, see trap.rs: nothing here is reached unprivileged.
    .globl syscall_entry
    .balign 16
syscall_entry:
    mov qword ptr [rip + AREAS + {cpu} + {user_rsp}], rsp
    mov rsp, qword ptr [rip + AREAS + {cpu} + {task_rsp0}]
    push {user_data}
    push qword ptr [rip + AREAS + {cpu} + {user_rsp}]
    enter_by_syscall

# The same where there are several CPUs: GS leads to what each has, while the program's waits.
    .globl syscall_entry_of_several
    .balign 16
syscall_entry_of_several:
    swapgs
    mov qword ptr gs:[{user_rsp}], rsp
    mov rsp, qword ptr gs:[{task_rsp0}]
    push {user_data}
    push qword ptr gs:[{user_rsp}]
    swapgs
    enter_by_syscall
