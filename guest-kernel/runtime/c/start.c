/* Native programs in C: from the kernel to main and back. Arguments, the check of the ABI's version,
 * exit. Programs are compiled with it; nobody includes it. */

#include <bulkhead/abi.h>

int main(int argc, char **argv);
_Noreturn void bulkhead_start(const struct bulkhead_boot_info *info);

/* Status of a program that could not be started, as the kernel's own. */
#define STATUS_NOT_STARTED 125
/* The list of arguments lies on the first stack and leaves most of it to main. */
#define MAX_ARGUMENTS (BULKHEAD_PROGRAM_STACK_BYTES / 4 / sizeof(char *))

/* The kernel's promise: the BootInfo in rdi, a stack in rsp, everything else zero. */
__asm__(".section .text.program_start, \"ax\"\n"
        ".globl program_start\n"
        "program_start:\n"
        "    xorl %ebp, %ebp\n"
        "    andq $-16, %rsp\n"
        "    call bulkhead_start\n"
        "    ud2\n"
        ".text\n");

static _Noreturn void end(uint64_t status)
{
    for (;;)
        bulkhead_exit(BULKHEAD_SLOT_PARTITION, status & 0xff);
}

static _Noreturn void refuse(const char *why)
{
    uint64_t length = 0, written;
    while (why[length] != '\0')
        length++;
    /* Without a console the status alone has to say it. */
    bulkhead_console_write(BULKHEAD_SLOT_CONSOLE, why, length, 2, &written);
    end(STATUS_NOT_STARTED);
}

_Noreturn void bulkhead_start(const struct bulkhead_boot_info *info)
{
    if (info->magic != BULKHEAD_MAGIC || info->version != BULKHEAD_VERSION)
        refuse("the program was compiled for another version of the kernel's ABI\n");
    /* The kernel has checked that the tables lie inside the blob. */
    const char *text = (const char *)info + info->args.offset;
    const char *text_end = text + info->args.count;
    uint64_t count = 0;
    for (const char *at = text; at < text_end; at++)
        count += *at == '\0';
    if (count > MAX_ARGUMENTS)
        refuse("the program has more arguments than its stack has room for\n");

    char *arguments[count + 1];
    uint64_t index = 0;
    for (const char *at = text; index < count; index++) {
        /* A program may not change them: they are read-only there. */
        arguments[index] = (char *)(uintptr_t)at;
        while (*at++ != '\0')
            ;
    }
    arguments[count] = NULL;
    end((uint64_t)main((int)count, arguments));
}
