# Everything of the probe that cannot be Rust: the PVH entry, the way into long mode, the exception
# entries, and the doors between CPL0 and CPL3.
#
# {EXIT_PORT} comes from bulkhead_abi::machine.
#
# Memory: the image lies at 1 MiB. After `long_mode` virtual address = physical address for 0-2 MiB,
# supervisor only; the same 2 MiB appear again at USER_ALIAS for CPL3.

.set COM1, 0x3f8
.set USER_ALIAS, 0x200000
.set MSR_EFER, 0xc0000080
.set KERNEL_CODE, 0x08
.set KERNEL_DATA, 0x10
.set USER_DATA, 0x23
.set USER_CODE, 0x2b

# PVH: 32-bit protected mode, paging off, ebx = hvm_start_info (Xen, "x86/HVM direct boot ABI").
.section .note.Xen, "a", @note
    .long 4, 8, 18                      # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad probe_entry

.section .entry, "ax"
.code32
.global probe_entry
probe_entry:
    mov dx, COM1
    mov al, 10
    out dx, al                          # what the boot benchmark waits for
    mov esi, [ebx + 24]                 # hvm_start_info.cmdline_paddr
    test esi, esi
    jz finish32
    cmp dword ptr [esi], 0x626f7270     # "prob"
    je long_mode
finish32:
    xor eax, eax
    out {EXIT_PORT}, al
    # Nobody serves the exit port: ask the keyboard controller for a reset, then triple-fault.
    mov al, 0xfe
    out 0x64, al
    lidt [no_idt]
    ud2

long_mode:
    mov edi, offset COMMAND_LINE        # the original may lie where no page maps it
    mov ecx, 63
    cld
    rep movsb
    mov dword ptr [pml4], offset pdpt + 7
    mov dword ptr [pdpt], offset pd + 7
    mov dword ptr [pd], 0x83            # present, writable, large
    mov dword ptr [pd + 8], 0x87        # the same memory, for CPL3 too
    mov eax, 0x620                      # CR4: PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, MSR_EFER
    mov eax, 0x901                      # SCE, LME, NXE
    xor edx, edx
    wrmsr
    mov eax, 0x80010023                 # CR0: PG, WP, NE, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    ljmp KERNEL_CODE, offset start64

.code64
.text
start64:
    mov eax, KERNEL_DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lea rsp, [rip + kernel_stack_top]
    call probe_main
    # The status comes back in eax.
.global probe_exit
probe_exit:
    out {EXIT_PORT}, al
    mov al, 0xfe
    out 0x64, al
    lidt [rip + no_idt]
    ud2

# u64 attempt(function, argument): calls `function(argument)` at CPL0 and returns what it returns;
# when an exception interrupts it, here or at CPL3, returns 1 << 63 | vector instead.
.global attempt
attempt:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + attempt_rsp], rsp
    mov rax, rdi
    mov rdi, rsi
    call rax
attempt_end:
    mov rsp, [rip + attempt_rsp]
    cld
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# enter_by_iretq(rip), enter_by_sysretq(rip): run `rip` at CPL3 until its first exception.
.global enter_by_iretq
enter_by_iretq:
    lea rax, [rip + user_stack_top + USER_ALIAS]
    push USER_DATA
    push rax
    push 2
    push USER_CODE
    push rdi
    iretq
.global enter_by_sysretq
enter_by_sysretq:
    lea rsp, [rip + user_stack_top + USER_ALIAS]
    mov rcx, rdi
    mov r11d, 2
    sysretq

# Programs for CPL3. They end with #UD and leave their result in r8.
.global user_nothing
user_nothing:
    ud2
.global user_speed
user_speed:
    rdtsc
    mov r8d, eax
    mov ecx, 100
2:  dec ecx
    jnz 2b
    rdtsc
    sub eax, r8d
    mov r8d, eax
    ud2
.global user_syscall
user_syscall:
    rdtsc
    mov r8d, eax
    syscall
    rdtsc
    sub eax, r8d
    mov r8d, eax
    ud2

# u64 kernel_speed(): ticks of the loop of `user_speed`, at CPL0.
.global kernel_speed
kernel_speed:
    rdtsc
    mov r8d, eax
    mov ecx, 100
2:  dec ecx
    jnz 2b
    rdtsc
    sub eax, r8d
    ret

# Where LSTAR points. On VMX and SVM `syscall` arrives here at CPL0.
.global syscall_entry
syscall_entry:
    mov qword ptr [rip + SYSCALL_LANDED], 1
    sysretq

# Exception entries, 16 bytes apart, the first for vector 0.
.balign 16
.global exception_entries
exception_entries:
.set vector, 0
.rept 32
    .balign 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    push vector
    jmp exception
    .set vector, vector + 1
.endr

# Stack: vector, error code, rip, cs, rflags, rsp, ss.
exception:
    push rax
    mov rax, [rsp + 8]
    cmp eax, 14
    jne 3f
    lea rax, [rip + syscall_entry]
    cmp [rsp + 24], rax                 # a page fault on the fetch at LSTAR is a system call
    jne 3f
    mov rax, [rsp + 16]
    mov [rip + SYSCALL_ERROR], rax
    mov qword ptr [rip + SYSCALL_LANDED], 2
    pop rax
    mov rsp, [rsp + 40]
    sysretq
3:  mov [rip + USER_RESULT], r8
    mov rax, [rsp + 8]
    bts rax, 63
    jmp attempt_end

.data
.balign 8
.global GDT
GDT:
    .quad 0
    .quad 0x00af9b000000ffff            # 0x08 kernel code
    .quad 0x00cf93000000ffff            # 0x10 kernel data
    .quad 0                             # 0x18 base of sysretq's selectors
    .quad 0x00cff3000000ffff            # 0x20 user data
    .quad 0x00affb000000ffff            # 0x28 user code
    .quad 0, 0                          # 0x30 TSS, filled in at run time
gdt_pointer:
    .word . - GDT - 1
    .long GDT, 0
no_idt:
    .word 0
    .quad 0

.section .bss.pages, "aw", @nobits
.balign 4096
pml4: .skip 4096
pdpt: .skip 4096
pd:   .skip 4096
.global IDT
IDT:  .skip 512
.global TSS
TSS:  .skip 104
.global COMMAND_LINE
COMMAND_LINE: .skip 64
attempt_rsp: .skip 8
.global USER_RESULT, SYSCALL_LANDED, SYSCALL_ERROR
USER_RESULT: .skip 8
SYSCALL_LANDED: .skip 8
SYSCALL_ERROR: .skip 8
.balign 16
.skip 4096
.global kernel_stack_top
kernel_stack_top:
.skip 1024
.global trap_stack_top
trap_stack_top:
.skip 256
user_stack_top:
.global scratch
.balign 64
scratch: .skip 4096
.text
