/* A native partition's program in C: says hello, names its arguments and what it was granted. What its
 * arguments ask for comes last: `map` maps two frames at one address and says who was at fault, `fault` writes to
 * address 0, `status=N` ends with that status. */

#include <bulkhead/abi.h>

/* A free address: see docs/native-programs.md. */
#define MEMORY UINT64_C(0x600000000000)

/* Output of one line, so that a line is one system call. */
static char line[256];
static uint64_t line_length;

static void flush(void)
{
    const char *from = line;
    while (line_length > 0) {
        uint64_t written;
        uint64_t status =
            bulkhead_console_write(BULKHEAD_SLOT_CONSOLE, from, line_length, 1, &written);
        /* No console, or its other side is gone. */
        if (status != BULKHEAD_STATUS_OK || written == 0)
            break;
        from += written;
        line_length -= written;
    }
    line_length = 0;
}

static void print(const char *text)
{
    for (; *text != '\0'; text++) {
        line[line_length++] = *text;
        if (*text == '\n' || line_length == sizeof line)
            flush();
    }
}

static int equal(const char *one, const char *other)
{
    while (*one != '\0' && *one == *other) {
        one++;
        other++;
    }
    return *one == *other;
}

/* The number in an argument `status=N`, or -1. */
static int status_of(const char *argument)
{
    const char *name = "status=";
    while (*name != '\0')
        if (*argument++ != *name++)
            return -1;
    int status = 0;
    do {
        if (*argument < '0' || *argument > '9' || status > 255)
            return -1;
        status = status * 10 + (*argument - '0');
    } while (*++argument != '\0');
    return status > 255 ? -1 : status;
}

/* Page tables for MEMORY and two frames, of the largest piece of free memory; the frames are mapped at
 * the same address, of which the second is one too many. */
static void map_twice(void)
{
    uint64_t tables = BULKHEAD_SLOT_FREE, frames = tables + 3, used;
    uint64_t rights = BULKHEAD_RIGHT_READ | BULKHEAD_RIGHT_WRITE;
    bulkhead_retype(BULKHEAD_SLOT_MEMORY, BULKHEAD_TYPE_PAGE_TABLE, 0, BULKHEAD_SLOT_CNODE, 0, 0,
                    tables, 3);
    bulkhead_retype(BULKHEAD_SLOT_MEMORY, BULKHEAD_TYPE_FRAME, 0, BULKHEAD_SLOT_CNODE, 0, 0, frames,
                    2);
    bulkhead_table_map(tables, BULKHEAD_SLOT_ADDRESS_SPACE, MEMORY, 3, &used);
    for (int time = 0; time < 2; time++) {
        uint64_t status = bulkhead_frame_map(frames + time, BULKHEAD_SLOT_ADDRESS_SPACE, MEMORY,
                                             rights, 0, 0);
        print("map: ");
        print(bulkhead_status_name(status));
        enum bulkhead_fault fault = bulkhead_status_fault(status);
        if (fault == BULKHEAD_FAULT_CALLER)
            print(", the caller's fault");
        else if (fault != BULKHEAD_FAULT_NOBODY)
            print(", not the caller's fault");
        print("\n");
    }
    /* The memory is zero, and ours. */
    volatile char *memory = (volatile char *)MEMORY;
    if (memory[0] == 0) {
        memory[0] = '!';
        print("memory: usable\n");
    }
}

int main(int argc, char **argv)
{
    const struct bulkhead_boot_info *info =
        (const struct bulkhead_boot_info *)BULKHEAD_PROGRAM_BOOT_INFO;
    int status = 0;
    print("hello from a native partition, in C\n");
    for (int index = 0; index < argc; index++) {
        print("argument: ");
        print(argv[index]);
        print("\n");
    }
    if (info->flags & BULKHEAD_FLAG_CONSOLE)
        print("granted: console\n");
    if (info->flags & BULKHEAD_FLAG_ENTROPY)
        print("granted: entropy\n");
    if (info->flags & BULKHEAD_FLAG_TIME)
        print("granted: time\n");
    const struct bulkhead_device *devices =
        (const struct bulkhead_device *)((const char *)info + info->devices.offset);
    for (uint32_t index = 0; index < info->devices.count; index++) {
        struct bulkhead_device device = devices[index];
        device.name[sizeof device.name - 1] = '\0';
        print("granted: device ");
        print((const char *)device.name);
        print("\n");
    }
    for (int index = 0; index < argc; index++) {
        if (equal(argv[index], "map"))
            map_twice();
        if (equal(argv[index], "fault"))
            *(volatile char *)(uintptr_t)0 = 1;
        int asked = status_of(argv[index]);
        if (asked >= 0)
            status = asked;
    }
    return status;
}
