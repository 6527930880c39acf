/* The functions that a compiler calls by itself, also in a freestanding program. Programs are compiled
 * with it. */

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t length);
void *memmove(void *to, const void *from, size_t length);
void *memset(void *to, int value, size_t length);
int memcmp(const void *one, const void *other, size_t length);

/* The loops below must not become calls of the functions they are. */
#pragma GCC optimize("no-tree-loop-distribute-patterns")

void *memcpy(void *restrict to, const void *restrict from, size_t length)
{
    return memmove(to, from, length);
}

void *memmove(void *to, const void *from, size_t length)
{
    unsigned char *target = to;
    const unsigned char *source = from;
    if (target <= source) {
        for (size_t index = 0; index < length; index++)
            target[index] = source[index];
    } else {
        while (length-- > 0)
            target[length] = source[length];
    }
    return to;
}

void *memset(void *to, int value, size_t length)
{
    unsigned char *target = to;
    for (size_t index = 0; index < length; index++)
        target[index] = (unsigned char)value;
    return to;
}

int memcmp(const void *one, const void *other, size_t length)
{
    const unsigned char *left = one, *right = other;
    for (size_t index = 0; index < length; index++)
        if (left[index] != right[index])
            return left[index] < right[index] ? -1 : 1;
    return 0;
}
