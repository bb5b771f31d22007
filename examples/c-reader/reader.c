/* Prints a line for each frame of a stream, until Ctrl-C or until the publisher is gone.
 *
 *     reader STREAM [HOLD_MS]
 *
 * Written only from docs/spec.md, with its names and steps (R1 to R6). With HOLD_MS, the reader holds each lease for
 * that long, and reports whether the pixels were the same at its end.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TAIL = 64, EVENT = 128, STATE = 192, OPEN = 1, SUPERSEDED = 3, SLOT_TABLE = 4096, SLOT_HEADER = 1024 };
#define LIVE ((off_t)1 << 40)
#define SLOT(i) (LIVE + 256 + (off_t)(i))
#define SEAT(k) (LIVE + 4096 + (off_t)(k))
#define U32(at) __atomic_load_n((const uint32_t *)(at), __ATOMIC_ACQUIRE)
#define U64(at) __atomic_load_n((const uint64_t *)(at), __ATOMIC_ACQUIRE)

static volatile sig_atomic_t stopped;

static void stop(int number) { stopped = number; }

static void fail(const char *sentence) {
    fprintf(stderr, "reader: %s\n", sentence);
    exit(1);
}

static bool set_lock(int fd, short type, off_t byte) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

static bool conflicts(int fd, short type, off_t byte) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static void pause_ms(long ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL); }

static bool take_seat(int fd, uint32_t seats) {
    for (int tries = 0; flock(fd, LOCK_EX | LOCK_NB) != 0 && tries < 50; tries++) pause_ms(10);
    bool taken = false;
    for (uint32_t k = 0; k < seats && !taken; k++)
        taken = !conflicts(fd, F_WRLCK, SEAT(k)) && set_lock(fd, F_RDLCK, SEAT(k));
    flock(fd, LOCK_UN);
    return taken;
}

/* Bytes of the frame that a slot header describes, or 0 if the header is invalid. */
static uint64_t frame_bytes(const uint8_t *header, uint64_t slot_bytes) {
    static const char dtypes[][8] = {"|b1", "|u1", "|i1", "<u2", "<i2", "<u4",
                                     "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"};
    uint32_t arrangement = U32(header + 144), size = 0;
    uint64_t height = U32(header + 104), width = U32(header + 108), channels = U32(header + 112);
    for (size_t i = 0; i < sizeof dtypes / 8; i++)
        if (!memcmp(header + 120, dtypes[i], 8)) size = dtypes[i][2] - '0';
    if (!size || arrangement > 4 || U32(header + 116) > 832 || !height || !width || !channels) return 0;
    uint64_t pixels = height * width; /* two factors of 32 bits cannot overflow */
    if (arrangement == 1) channels = 1;
    if (arrangement > 2) {
        if (height % 2 || width % 2 || size != 1) return 0;
        pixels += pixels / 2, channels = 1;
    }
    if (pixels > slot_bytes || channels > slot_bytes / pixels || pixels * channels > slot_bytes / size) return 0;
    return pixels * channels * size;
}

static uint64_t sum(const uint8_t *pixels, uint64_t bytes) {
    uint64_t total = 0;
    for (uint64_t i = 0; i < bytes; i++) total += pixels[i];
    return total;
}

/* R5: the lease is held. */
static void show(const uint8_t *header, const uint8_t *pixels, uint64_t bytes, long hold_ms) {
    static uint64_t newest;
    uint64_t sequence = U64(header + 72), skipped = newest ? sequence - newest - 1 : 0;
    newest = sequence;
    char format[17] = {0};
    memcpy(format, header + 128, 16);
    for (char *c = format; *c; c++) if (*c < ' ' || *c > '~') *c = '?';
    uint64_t before = sum(pixels, bytes);
    printf("frame %" PRIu64 ": %ux%ux%u %.8s %s, sum %" PRIu64 ", skipped %" PRIu64, sequence, U32(header + 104),
           U32(header + 108), U32(header + 112), (const char *)header + 120, format, before, skipped);
    if (hold_ms) {
        pause_ms(hold_ms);
        printf(", %s", sum(pixels, bytes) == before ? "unchanged" : "changed");
    }
    puts("");
    fflush(stdout);
}

/* Read the ring at a path until it ends. Return whether another ring has replaced it. */
static bool follow(const char *path, uint64_t *last, long hold_ms) {
    int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = open(path, flags), mapped = open(path, flags); /* one for the locks, one for the mapping */
    struct stat file, locked, now;
    if (fd < 0 || mapped < 0 || fstat(mapped, &file) || fstat(fd, &locked))
        fail("no such stream, or not for this user");
    if (file.st_dev != locked.st_dev || file.st_ino != locked.st_ino) fail("the ring was replaced: start again");
    if (!S_ISREG(file.st_mode) || file.st_size < SLOT_TABLE || file.st_blocks * 512 < file.st_size) fail("not a ring");
    const uint8_t *ring = mmap(NULL, (size_t)file.st_size, PROT_READ, MAP_SHARED, mapped, 0);
    if (ring == MAP_FAILED) fail("the ring cannot be mapped");
    close(mapped);
    uint32_t slots = U32(ring + 12), max_loans = U32(ring + 48);
    uint64_t slot_bytes = U64(ring + 16), first = U64(ring + 24);
    uint64_t begin = (SLOT_TABLE + (uint64_t)SLOT_HEADER * slots + 4095) / 4096 * 4096;
    if (memcmp(ring, "FRAMEBUS", 8) || U32(ring + 8) != 2) fail("not a ring of version 2");
    if (slots < 3 || slots > 255 || !slot_bytes || slot_bytes % 4096 || slot_bytes > (uint64_t)1 << 39 || !max_loans ||
        max_loans > slots - 2 || begin + slots * slot_bytes != (uint64_t)file.st_size) fail("the ring is damaged");
    if (!conflicts(fd, F_RDLCK, LIVE)) fail("no publisher serves the stream");
    if (!take_seat(fd, slots - 1 - max_loans)) fail("no seat is free: close a subscriber, or give the ring more slots");
    if (stat(path, &now) || now.st_ino != file.st_ino) fail("the ring was replaced: start again");
    if (first - 1 < *last) *last = first - 1;

    while (!stopped && U32(ring + STATE) == OPEN && conflicts(fd, F_RDLCK, LIVE)) {
        uint32_t event = U32(ring + EVENT);
        for (int tries = 0; tries < 8; tries++) {
            uint64_t tail = U64(ring + TAIL), sequence = tail >> 8, slot = tail & 0xff; /* R1 */
            if (slot >= slots || sequence <= *last) break;
            const uint8_t *there = ring + SLOT_TABLE + SLOT_HEADER * slot, *pixels = ring + begin + slot_bytes * slot;
            if (!set_lock(fd, F_RDLCK, SLOT(slot))) continue; /* R2 */
            if (U64(there) == sequence) { /* R3 */
                _Alignas(8) uint8_t header[192];
                memcpy(header, there, sizeof header); /* a copy is checked and used, because the bytes may change */
                uint64_t bytes = U64(header + 72) == sequence ? frame_bytes(header, slot_bytes) : 0; /* R4 */
                if (bytes) show(header, pixels, bytes, hold_ms);
                *last = sequence;
            }
            set_lock(fd, F_UNLCK, SLOT(slot)); /* R6 */
        }
        syscall(SYS_futex, ring + EVENT, FUTEX_WAIT, event, &(struct timespec){0, 50000000}, NULL, 0);
    }
    bool superseded = !stopped && U32(ring + STATE) == SUPERSEDED;
    munmap((void *)ring, (size_t)file.st_size);
    close(fd); /* frees the seat */
    return superseded;
}

int main(int count, char **arguments) {
    char path[96];
    if (count < 2 || count > 3) fail("usage: reader STREAM [HOLD_MS]");
    if (strchr(arguments[1], '/') || strlen(arguments[1]) > 48) fail("a stream's name is letters, digits, '-' and '_'");
    snprintf(path, sizeof path, "/dev/shm/framebus.%s.ring", arguments[1]);
    sigaction(SIGINT, &(struct sigaction){.sa_handler = stop}, NULL);
    uint64_t last = 0;
    for (bool more = true; more && !stopped;) {
        more = follow(path, &last, count == 3 ? atol(arguments[2]) : 0);
        for (int tries = 0; more && access(path, R_OK) != 0 && !stopped && tries < 100; tries++) pause_ms(50);
    }
    if (!stopped) puts("the publisher is gone");
    return 0;
}
