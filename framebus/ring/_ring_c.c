/* The steps of a hand-over that decide its time, compiled.
 *
 * framebus/ring/_ring_py.py does the same in plain Python and describes each step, framebus/ring/__init__.py why they come in this
 * order, framebus/ring/layout.py the bytes. Nothing here waits with the interpreter's lock held.
 *
 * Sources: fcntl(2), F_OFD_SETLK; futex(2); send(2); PEP 384 (stable ABI), PEP 3118 (buffers).
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    TAIL = 64,
    EVENT = 128,
    SLOT_TABLE = 4096,
    SLOT_HEADER_BYTES = 1024,
    SLOT_FIELDS = 64,
    SLOT_DESCRIPTION = 104,
    DESCRIPTION_BYTES = 44,
    RECORD_RECEIVED = 128,
    RECORD_COUNTERS = 6,
    MAX_SLOTS = 255,
    MAX_AXES = 3,
    NO_SLOT = MAX_SLOTS,
    LOOKS = 8,
    MAX_MESSAGE_BYTES = 257,
};
#define LOCK_SLOTS ((1LL << 40) + 256)

enum { EPOCH, SEQUENCE, CAPTURED_NS, CAPTURED_WALL_NS, PUBLISHED_NS }; /* words from SLOT_FIELDS on */
enum { HEIGHT = 5, DTYPE = 9, SHAPE = 12, HEADER_ITEMS = 13 };         /* items of a FrameHeader */

static PyObject *claim_type, *lease_type, *header_type, *check_description, *layout_mismatch;
static PyObject *fd_name, *address_name;

static uint64_t load64(const uint8_t *at) { return __atomic_load_n((const uint64_t *)at, __ATOMIC_ACQUIRE); }
static void store64(uint8_t *at, uint64_t value) { __atomic_store_n((uint64_t *)at, value, __ATOMIC_RELEASE); }

static uint8_t *slot_header(uint8_t *ring, unsigned slot) { return ring + SLOT_TABLE + slot * SLOT_HEADER_BYTES; }

static int64_t read_clock(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t now_ns(void) { return read_clock(CLOCK_MONOTONIC); }

static int set_lock(int fd, short type, unsigned slot)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = LOCK_SLOTS + slot, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock);
}

/* The segment's descriptor, -1 in a forked child; below -1 with an exception set. */
static int segment_fd(PyObject *segment)
{
    PyObject *value = PyObject_GetAttr(segment, fd_name);
    if (value == NULL)
        return -2;
    long fd = PyLong_AsLong(value);
    Py_DECREF(value);
    return fd == -1 && PyErr_Occurred() ? -2 : (int)fd;
}

static uint8_t *segment_address(PyObject *segment)
{
    PyObject *value = PyObject_GetAttr(segment, address_name);
    if (value == NULL)
        return NULL;
    void *address = PyLong_AsVoidPtr(value);
    Py_DECREF(value);
    return address;
}

/* What a Writer and a Reader begin with. */
typedef struct {
    PyObject_HEAD
    PyObject *segment;
    uint8_t *ring;
} OnRing;

/* A zeroed object that keeps the segment. */
static void *new_on_ring(PyTypeObject *type, PyObject *segment)
{
    uint8_t *ring = segment_address(segment);
    OnRing *self = ring ? (OnRing *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0) : NULL;
    if (self == NULL)
        return NULL;
    Py_INCREF(segment);
    self->segment = segment;
    self->ring = ring;
    return self;
}

static int has_arguments(Py_ssize_t found, Py_ssize_t wanted)
{
    if (found != wanted)
        PyErr_Format(PyExc_TypeError, "%zd arguments are wanted, not %zd", wanted, found);
    return found == wanted;
}

/* ---- the publisher ------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *segment; /* as in OnRing */
    uint8_t *ring;
    unsigned long long slot_bytes, first_slot, epoch, next_sequence, lost;
    unsigned slots, loans, max_loans;
    int newest; /* -1 before the first frame */
    char closed;
    uint8_t order[MAX_SLOTS]; /* from the oldest to the newest */
    uint8_t loaned[MAX_SLOTS]; /* 1 a claim is out, 2 it was lost, and views on the slot's array are out */
    PyObject *arrays;          /* a list: the array on each slot; NULL before it is given */
} Writer;

typedef struct {
    PyObject_HEAD
    Writer *writer;
    unsigned slot;
    PyObject *is_open, *number, *now_ns, *now_wall_ns; /* objects: the interpreter reads such members without a call */
} Claim;

static void move_to_end(Writer *self, uint8_t slot)
{
    uint8_t *end = self->order + self->slots - 1, *at = memchr(self->order, slot, self->slots);
    memmove(at, at + 1, (size_t)(end - at));
    *end = slot;
}

static int claim_slot(Writer *self, int fd, unsigned slot, const char *description, size_t length)
{
    if (set_lock(fd, F_WRLCK, slot) < 0)
        return 0;
    uint8_t *header = slot_header(self->ring, slot);
    uint64_t *fields = (uint64_t *)(header + SLOT_FIELDS);
    store64(header, 0);
    fields[EPOCH] = self->epoch;
    memcpy(header + SLOT_DESCRIPTION, description, length);
    return 1;
}

static PyObject *new_claim(Writer *self, int fd, unsigned slot)
{
    Claim *claim = PyObject_New(Claim, (PyTypeObject *)claim_type);
    if (claim == NULL) {
        set_lock(fd, F_UNLCK, slot);
        return NULL;
    }
    Py_INCREF((PyObject *)self);
    claim->writer = self;
    claim->slot = slot;
    claim->is_open = Py_NewRef(Py_True);
    claim->number = PyLong_FromUnsignedLong(slot);
    claim->now_ns = PyLong_FromLongLong(now_ns());
    claim->now_wall_ns = PyLong_FromLongLong(read_clock(CLOCK_REALTIME));
    self->loaned[slot] = 1;
    self->loans++;
    if (claim->number == NULL || claim->now_ns == NULL || claim->now_wall_ns == NULL) {
        Py_DECREF((PyObject *)claim); /* which gives the slot back */
        return NULL;
    }
    return (PyObject *)claim;
}

/* Whether views on the slot's array are out, which the list alone references besides them. */
static int is_viewed(const Writer *self, unsigned slot)
{
    PyObject *array = self->arrays ? PyList_GetItem(self->arrays, slot) : NULL;
    if (array == NULL)
        PyErr_Clear();
    return array && Py_REFCNT(array) > 1;
}

/* Give back the slots whose views have gone since their claims were lost. */
static void sweep(Writer *self, int fd)
{
    for (unsigned slot = 0; slot < self->slots; slot++)
        if (self->loaned[slot] == 2 && !is_viewed(self, slot)) {
            if (fd >= 0)
                set_lock(fd, F_UNLCK, slot);
            self->loaned[slot] = 0;
            self->loans--;
            self->lost++;
        }
}

static PyObject *writer_claim(Writer *self, PyObject *described)
{
    char *description;
    Py_ssize_t length;
    int fd = segment_fd(self->segment);
    if (fd < -1 || PyBytes_AsStringAndSize(described, &description, &length) < 0)
        return NULL;
    if (length > SLOT_HEADER_BYTES - SLOT_DESCRIPTION) {
        PyErr_SetString(PyExc_ValueError, "the description is longer than a slot's header");
        return NULL;
    }
    if (self->loans)
        sweep(self, fd);
    if (self->closed || self->loans >= self->max_loans)
        Py_RETURN_NONE;
    for (unsigned turn = 0; turn < 2 * self->slots; turn++) {
        unsigned slot = self->order[turn < self->slots ? turn : 2 * self->slots - 1 - turn];
        if ((int)slot != self->newest && !self->loaned[slot] &&
            claim_slot(self, fd, slot, description, (size_t)length))
            return new_claim(self, fd, slot);
    }
    Py_RETURN_NONE;
}

/* The claim's slot is published or given back; it counts no more. */
static void forget_claim(Claim *claim)
{
    Py_DECREF(claim->is_open);
    claim->is_open = Py_NewRef(Py_False);
    claim->writer->loaned[claim->slot] = 0;
    claim->writer->loans--;
}

static void give_back(Claim *claim)
{
    int fd = segment_fd(claim->writer->segment);
    if (fd >= 0)
        set_lock(fd, F_UNLCK, claim->slot);
    forget_claim(claim);
}

static PyObject *claim_abandon(Claim *self, PyObject *nothing)
{
    (void)nothing;
    if (self->is_open == Py_True)
        give_back(self);
    Py_RETURN_NONE;
}

static void claim_dealloc(Claim *self)
{
    PyObject *type = (PyObject *)Py_TYPE((PyObject *)self), *kind, *value, *trace;
    if (self->is_open == Py_True) {
        PyErr_Fetch(&kind, &value, &trace);
        if (is_viewed(self->writer, self->slot)) {
            self->writer->loaned[self->slot] = 2;
        } else {
            self->writer->lost++;
            give_back(self);
        }
        PyErr_Restore(kind, value, trace);
    }
    Py_DECREF(self->is_open);
    Py_XDECREF(self->number);
    Py_XDECREF(self->now_ns);
    Py_XDECREF(self->now_wall_ns);
    Py_DECREF((PyObject *)self->writer);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int claim_buffer(Claim *self, Py_buffer *view, int flags)
{
    const Writer *writer = self->writer;
    void *pixels = writer->ring + writer->first_slot + self->slot * writer->slot_bytes;
    if (self->is_open != Py_True) {
        PyErr_SetString(PyExc_BufferError, "the claim was published or abandoned");
        view->obj = NULL;
        return -1;
    }
    return PyBuffer_FillInfo(view, (PyObject *)self, pixels, (Py_ssize_t)writer->slot_bytes, 0, flags);
}

static PyObject *writer_watch(Writer *self, PyObject *arrays)
{
    if (!PyList_Check(arrays)) {
        PyErr_SetString(PyExc_TypeError, "a list of arrays is wanted");
        return NULL;
    }
    Py_INCREF(arrays);
    Py_XDECREF(self->arrays);
    self->arrays = arrays;
    Py_RETURN_NONE;
}

static PyObject *writer_loans(Writer *self, void *nothing)
{
    unsigned loans = self->loans;
    (void)nothing;
    for (unsigned slot = 0; slot < self->slots; slot++)
        loans -= self->loaned[slot] == 2 && !is_viewed(self, slot);
    return PyLong_FromUnsignedLong(loans);
}

/* Nothing in here gives up the interpreter's lock, so no other thread can be in the middle of a claim or publication. */
static PyObject *writer_close(Writer *self, PyObject *finish)
{
    self->closed = 1;
    return PyObject_CallNoArgs(finish);
}

static void put_big_endian(char *at, uint64_t value)
{
    for (int byte = 0; byte < 8; byte++)
        at[byte] = (char)(value >> (56 - 8 * byte));
}

/* A message.Message: its offsets stand in this order. */
enum { SEQUENCE_AT, SLOT_AT, CAPTURED_AT, PUBLISHED_AT, OFFSETS };

typedef struct {
    char content[MAX_MESSAGE_BYTES];
    Py_ssize_t length, at[OFFSETS];
} Message;

static int copy_message(PyObject *message, Message *copy)
{
    char *content;
    if (!PyTuple_Check(message) || PyTuple_Size(message) != 1 + OFFSETS) {
        PyErr_SetString(PyExc_TypeError, "a message is wanted");
        return -1;
    }
    if (PyBytes_AsStringAndSize(PyTuple_GetItem(message, 0), &content, &copy->length) < 0)
        return -1;
    int fits = copy->length <= MAX_MESSAGE_BYTES;
    for (int offset = 0; offset < OFFSETS; offset++) {
        Py_ssize_t at = copy->at[offset] = PyLong_AsSsize_t(PyTuple_GetItem(message, 1 + offset));
        if (PyErr_Occurred())
            return -1;
        fits &= at >= 0 && at <= copy->length - (offset == SLOT_AT ? 1 : 8);
    }
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "the message is too long, or an offset is outside it");
        return -1;
    }
    memcpy(copy->content, content, (size_t)copy->length);
    return 0;
}

static void send_all(PyObject *sockets, Py_ssize_t count, const Message *told)
{
    for (Py_ssize_t number = 0; number < count; number++) {
        PyObject *socket = PySequence_GetItem(sockets, number);
        int fd = socket ? PyObject_AsFileDescriptor(socket) : -1;
        Py_XDECREF(socket);
        if (fd < 0) {
            PyErr_Clear(); /* the frame is published: that must be told */
            continue;
        }
        ssize_t sent = send(fd, told->content, (size_t)told->length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0 && sent < told->length)
            shutdown(fd, SHUT_RDWR);
    }
}

static PyObject *writer_publish(Writer *self, PyObject *const *arguments, Py_ssize_t count)
{
    Message told;
    if (count != 3 && !has_arguments(count, 5))
        return NULL;
    Py_ssize_t sockets = count == 5 ? PySequence_Size(arguments[3]) : 0;
    if (sockets < 0 || (sockets && copy_message(arguments[4], &told) < 0))
        return NULL;
    uint64_t captured_ns = (uint64_t)PyLong_AsLongLong(arguments[1]);
    uint64_t captured_wall_ns = PyErr_Occurred() ? 0 : (uint64_t)PyLong_AsLongLong(arguments[2]);
    if (PyErr_Occurred())
        return NULL;
    /* From here on no code of Python's runs, so that what is checked stays so. */
    Claim *claim = (Claim *)arguments[0];
    if ((PyObject *)Py_TYPE(arguments[0]) != claim_type || claim->writer != self || claim->is_open != Py_True) {
        PyErr_SetString(PyExc_ValueError, "the claim is not an open one of this writer");
        return NULL;
    }
    int fd = segment_fd(self->segment);
    if (fd < -1)
        return NULL;
    if (fd < 0 || self->closed) {
        errno = EBADF;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    unsigned slot = claim->slot;
    uint8_t *header = slot_header(self->ring, slot);
    uint64_t *fields = (uint64_t *)(header + SLOT_FIELDS);
    int64_t published_ns = now_ns();
    fields[SEQUENCE] = self->next_sequence;
    fields[CAPTURED_NS] = captured_ns;
    fields[CAPTURED_WALL_NS] = captured_wall_ns;
    fields[PUBLISHED_NS] = (uint64_t)published_ns;
    store64(header, self->next_sequence);
    if (set_lock(fd, F_UNLCK, slot) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    forget_claim(claim);
    store64(self->ring + TAIL, self->next_sequence << 8 | slot);
    uint32_t *event = (uint32_t *)(self->ring + EVENT);
    __atomic_store_n(event, *event + 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, event, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    if (sockets) {
        put_big_endian(told.content + told.at[SEQUENCE_AT], self->next_sequence);
        told.content[told.at[SLOT_AT]] = (char)slot;
        put_big_endian(told.content + told.at[CAPTURED_AT], captured_ns);
        put_big_endian(told.content + told.at[PUBLISHED_AT], (uint64_t)published_ns);
        send_all(arguments[3], sockets, &told);
    }
    self->next_sequence++;
    self->newest = (int)slot;
    /* With every publication, not with the next claim: several frames may be published between two claims. */
    move_to_end(self, (uint8_t)slot);
    return PyLong_FromLongLong(published_ns);
}

static PyObject *writer_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    PyObject *segment;
    unsigned slots, max_loans;
    unsigned long long slot_bytes, first_slot, epoch, next_sequence;
    if (named != NULL || !PyArg_ParseTuple(arguments, "OIKKKKI", &segment, &slots, &slot_bytes, &first_slot, &epoch,
                                           &next_sequence, &max_loans))
        return NULL;
    Writer *self = new_on_ring(type, segment);
    if (self == NULL)
        return NULL;
    self->slot_bytes = slot_bytes;
    self->first_slot = first_slot;
    self->epoch = epoch;
    self->next_sequence = next_sequence;
    self->max_loans = max_loans;
    self->slots = slots < MAX_SLOTS ? slots : MAX_SLOTS;
    for (unsigned slot = 0; slot < self->slots; slot++) { /* an insertion sort by sequence */
        uint64_t sequence = load64(slot_header(self->ring, slot));
        unsigned at = slot;
        for (; at > 0 && load64(slot_header(self->ring, self->order[at - 1])) > sequence; at--)
            self->order[at] = self->order[at - 1];
        self->order[at] = (uint8_t)slot;
    }
    uint64_t tail = load64(self->ring + TAIL);
    self->newest = tail >> 8 && (tail & 0xFF) < self->slots ? (int)(tail & 0xFF) : -1;
    return (PyObject *)self;
}

static void writer_dealloc(Writer *self)
{
    PyObject *type = (PyObject *)Py_TYPE((PyObject *)self);
    Py_XDECREF(self->segment);
    Py_XDECREF(self->arrays);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* ---- the subscriber ------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    PyObject *segment; /* as in OnRing */
    uint8_t *ring;
    unsigned slots;
    unsigned long long slot_bytes, first_slot;
    char every;
    long long last, history_after, history_end;
    unsigned long long received, skipped, overruns, rejected;
    unsigned leases;
    PyObject *record; /* the segment that is reported to; NULL before that */
    uint8_t *record_address;
    uint64_t report[RECORD_COUNTERS];
    uint8_t held[MAX_SLOTS + 1];
    PyObject *described; /* what description means; NULL before the first */
    char description[DESCRIPTION_BYTES];
} Reader;

typedef struct {
    PyObject_HEAD
    Reader *reader;
    PyObject *header, *skipped; /* objects, as in Claim */
    unsigned slot;
    unsigned long long sequence;
    Py_ssize_t shape[MAX_AXES], strides[MAX_AXES];
    char format[2];
} Lease;

static PyObject *new_lease(Reader *reader, unsigned slot, uint64_t sequence)
{
    Lease *lease = PyObject_New(Lease, (PyTypeObject *)lease_type);
    if (lease == NULL) {
        int fd = segment_fd(reader->segment);
        if (fd >= 0)
            set_lock(fd, F_UNLCK, slot);
        return NULL;
    }
    Py_INCREF((PyObject *)reader);
    lease->reader = reader;
    lease->header = NULL;
    lease->slot = slot;
    lease->sequence = sequence;
    lease->skipped = PyLong_FromLong(0); /* one that exists already */
    if (slot != NO_SLOT) {
        reader->held[slot] = 1;
        reader->leases++;
    }
    return (PyObject *)lease;
}

static void lease_dealloc(Lease *self)
{
    PyObject *type = (PyObject *)Py_TYPE((PyObject *)self), *kind, *value, *trace;
    Reader *reader = self->reader;
    PyErr_Fetch(&kind, &value, &trace);
    int fd = segment_fd(reader->segment);
    if (fd >= 0)
        set_lock(fd, F_UNLCK, self->slot);
    PyErr_Restore(kind, value, trace);
    if (self->slot != NO_SLOT) { /* only now: a new lease on the slot can never be undone by this unlock */
        reader->held[self->slot] = 0;
        reader->leases--;
    }
    Py_XDECREF(self->header);
    Py_XDECREF(self->skipped);
    Py_DECREF((PyObject *)reader);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int lease_buffer(Lease *self, Py_buffer *view, int flags)
{
    static const struct {
        const char *dtype, format[2];
        Py_ssize_t bytes;
    } elements[] = {{"|u1", "B", 1}, {"|i1", "b", 1}, {"<u2", "H", 2}, {"<i2", "h", 2}, {"<u4", "I", 4},
                    {"<i4", "i", 4}, {"<f2", "e", 2}, {"<f4", "f", 4}, {"<f8", "d", 8}, {"|b1", "?", 1},
                    {"<u8", "Q", 8}, {"<i8", "q", 8}, {NULL, "", 0}};
    Reader *reader = self->reader;
    PyObject *dtype = self->header ? PyTuple_GetItem(self->header, DTYPE) : NULL;
    PyObject *shape = self->header ? PyTuple_GetItem(self->header, SHAPE) : NULL;
    const char *name = dtype ? PyUnicode_AsUTF8AndSize(dtype, NULL) : "";
    int element = 0, axes = shape ? (int)PyTuple_Size(shape) : 0;
    if (name == NULL)
        return -1;
    while (elements[element].dtype && strcmp(elements[element].dtype, name))
        element++;
    Py_ssize_t length = elements[element].bytes;
    if (axes < 1 || axes > MAX_AXES)
        length = axes = 0;
    for (int axis = axes - 1; axis >= 0; axis--) {
        PyObject *item = PyTuple_GetItem(shape, axis);
        self->strides[axis] = length;
        self->shape[axis] = item ? PyLong_AsSsize_t(item) : 0;
        if (self->shape[axis] < 1 || __builtin_mul_overflow(length, self->shape[axis], &length))
            length = 0;
    }
    if (length < 1 || (unsigned long long)length > reader->slot_bytes || flags & PyBUF_WRITABLE) {
        PyErr_Clear();
        PyErr_SetString(PyExc_BufferError, "the lease has no pixels to read, or they were asked for writing");
        view->obj = NULL;
        return -1;
    }
    memcpy(self->format, elements[element].format, sizeof self->format);
    Py_INCREF((PyObject *)self);
    view->obj = (PyObject *)self;
    view->buf = reader->ring + reader->first_slot + (self->slot == NO_SLOT ? 0 : self->slot) * reader->slot_bytes;
    view->len = length;
    view->itemsize = elements[element].bytes;
    view->readonly = 1;
    view->ndim = axes;
    view->format = flags & PyBUF_FORMAT ? self->format : NULL;
    view->shape = flags & PyBUF_ND ? self->shape : NULL;
    view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? self->strides : NULL;
    view->suboffsets = NULL;
    view->internal = NULL;
    return 0;
}

/* A lease on the slot if it holds the frame of that sequence; None if not, NULL with an exception. */
static PyObject *lease_slot(Reader *self, unsigned slot, uint64_t sequence)
{
    if (self->held[slot])
        Py_RETURN_NONE;
    int fd = segment_fd(self->segment);
    if (fd < -1)
        return NULL;
    if (set_lock(fd, F_RDLCK, slot) == 0) {
        if (load64(slot_header(self->ring, slot)) == sequence)
            return new_lease(self, slot, sequence);
        set_lock(fd, F_UNLCK, slot);
    }
    self->overruns++;
    Py_RETURN_NONE;
}

static int choose_newest(const Reader *self, unsigned *slot, uint64_t *sequence)
{
    uint64_t tail = load64(self->ring + TAIL);
    *slot = tail & 0xFF;
    *sequence = tail >> 8;
    return *sequence && (int64_t)*sequence > self->last && *slot < self->slots;
}

static int choose_following(const Reader *self, unsigned *slot, uint64_t *sequence)
{
    long long after = self->last > self->history_after ? self->last : self->history_after;
    *sequence = UINT64_MAX;
    for (unsigned other = 0; other < self->slots; other++) {
        uint64_t found = load64(slot_header(self->ring, other));
        if (found > (uint64_t)after && found < *sequence) {
            *slot = other;
            *sequence = found;
        }
    }
    return *sequence != UINT64_MAX;
}

/* The slot's header as a FrameHeader, and its numbers. Its description is nearly always that of the frame before. */
static PyObject *read_header(Reader *self, unsigned slot, int64_t numbers[HEIGHT])
{
    const uint8_t *at = slot_header(self->ring, slot);
    char description[DESCRIPTION_BYTES];
    memcpy(numbers, at + SLOT_FIELDS, HEIGHT * sizeof *numbers);
    memcpy(description, at + SLOT_DESCRIPTION, sizeof description);
    if (self->described == NULL || memcmp(description, self->description, sizeof description)) {
        PyObject *described = PyObject_CallFunction(
            check_description, "y#K", description, (Py_ssize_t)sizeof description, self->slot_bytes);
        if (described == NULL)
            return NULL;
        Py_XDECREF(self->described);
        self->described = described;
        memcpy(self->description, description, sizeof description);
    }
    PyObject *items = PyTuple_New(HEADER_ITEMS);
    for (int item = 0; items && item < HEADER_ITEMS; item++) {
        PyObject *value = item <= SEQUENCE ? PyLong_FromUnsignedLongLong((uint64_t)numbers[item])
                          : item < HEIGHT  ? PyLong_FromLongLong(numbers[item])
                                           : PyTuple_GetItem(self->described, item - HEIGHT);
        if (value == NULL) {
            Py_DECREF(items);
            return NULL;
        }
        if (item >= HEIGHT)
            Py_INCREF(value);
        PyTuple_SetItem(items, item, value);
    }
    PyObject *arguments = items ? PyTuple_Pack(1, items) : NULL;
    Py_XDECREF(items);
    if (arguments == NULL)
        return NULL;
    newfunc new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    PyObject *header = new_tuple((PyTypeObject *)header_type, arguments, NULL);
    Py_DECREF(arguments);
    return header;
}

static void write_report(const Reader *self)
{
    if (self->record_address)
        memcpy(self->record_address + RECORD_RECEIVED, self->report, sizeof self->report);
}

/* Reads the header of a frame that is leased. 1 if it makes sense, 0 if not, -1 with an exception. */
static int accept_frame(Reader *self, Lease *lease)
{
    long long last = self->last, sequence = (long long)lease->sequence;
    int64_t numbers[HEIGHT], now = now_ns();
    self->last = sequence;
    lease->header = read_header(self, lease->slot, numbers);
    if (lease->header == NULL && !PyErr_ExceptionMatches(layout_mismatch))
        return -1;
    PyErr_Clear();
    if (lease->header == NULL || numbers[SEQUENCE] != sequence) {
        self->rejected++;
        return 0;
    }
    uint64_t skipped = last >= 0 ? (uint64_t)(sequence - last - 1) : 0;
    Py_XDECREF(lease->skipped);
    lease->skipped = PyLong_FromUnsignedLongLong(skipped);
    if (lease->skipped == NULL)
        return -1;
    self->received++;
    self->skipped += skipped;
    uint64_t age = numbers[CAPTURED_NS] < now ? (uint64_t)now - (uint64_t)numbers[CAPTURED_NS] : 0;
    uint64_t report[] = {self->received, self->skipped, (uint64_t)sequence, self->leases, age, (uint64_t)now};
    memcpy(self->report, report, sizeof report);
    write_report(self);
    return 1;
}

static PyObject *reader_take(Reader *self, PyObject *nothing)
{
    unsigned slot;
    uint64_t sequence;
    (void)nothing;
    for (int look = 0; look < LOOKS; look++) {
        int in_order = self->last < self->history_end || (self->every && self->last >= 0);
        if (!(in_order ? choose_following(self, &slot, &sequence) : choose_newest(self, &slot, &sequence)))
            break;
        PyObject *lease = lease_slot(self, slot, sequence);
        int accepted = lease == NULL ? -1 : lease == Py_None ? 0 : accept_frame(self, (Lease *)lease);
        if (accepted > 0)
            return lease;
        Py_XDECREF(lease);
        if (accepted < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *reader_look(Reader *self, PyObject *until)
{
    int64_t until_ns = PyLong_AsLongLong(until);
    uint64_t unseen = (uint64_t)(self->last < 0 ? 1 : self->last + 1) << 8;
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    while (load64(self->ring + TAIL) < unseen && now_ns() < until_ns) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }
    Py_END_ALLOW_THREADS
    return reader_take(self, NULL);
}

static PyObject *reader_sleep(Reader *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (!has_arguments(count, 2))
        return NULL;
    uint32_t event = (uint32_t)PyLong_AsUnsignedLongMask(arguments[0]);
    int64_t timeout_ns = PyLong_AsLongLong(arguments[1]);
    if (PyErr_Occurred())
        return NULL;
    struct timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    Py_BEGIN_ALLOW_THREADS
    syscall(SYS_futex, self->ring + EVENT, FUTEX_WAIT, event, &timeout, NULL, 0);
    Py_END_ALLOW_THREADS
    return reader_take(self, NULL);
}

static PyObject *reader_rehearse(Reader *self, PyObject *nothing)
{
    int fd = segment_fd(self->segment);
    unsigned slot = load64(self->ring + TAIL) & 0xFF;
    (void)nothing;
    if (fd < -1)
        return NULL;
    if (slot >= self->slots || set_lock(fd, F_RDLCK, NO_SLOT) < 0)
        Py_RETURN_NONE;
    int64_t numbers[HEIGHT];
    write_report(self);
    Lease *lease = (Lease *)new_lease(self, NO_SLOT, 0);
    if (lease == NULL || (lease->header = read_header(self, slot, numbers)) != NULL)
        return (PyObject *)lease;
    PyObject *result = NULL;
    if (PyErr_ExceptionMatches(layout_mismatch)) { /* it may be in the middle of being written */
        PyErr_Clear();
        result = Py_None;
        Py_INCREF(result);
    }
    Py_DECREF((PyObject *)lease);
    return result;
}

static PyObject *reader_report_to(Reader *self, PyObject *record)
{
    uint8_t *address = segment_address(record);
    if (address == NULL)
        return NULL;
    Py_INCREF(record);
    Py_XDECREF(self->record);
    self->record = record;
    self->record_address = address;
    Py_RETURN_NONE;
}

static PyObject *reader_held(Reader *self, PyObject *nothing)
{
    PyObject *sequences = PyList_New(0);
    (void)nothing;
    for (unsigned slot = 0; sequences && slot < self->slots; slot++) {
        if (!self->held[slot])
            continue;
        PyObject *sequence = PyLong_FromUnsignedLongLong(load64(slot_header(self->ring, slot)));
        if (sequence == NULL || PyList_Append(sequences, sequence) < 0)
            Py_CLEAR(sequences);
        Py_XDECREF(sequence);
    }
    PyObject *result = sequences && PyList_Sort(sequences) == 0 ? PyList_AsTuple(sequences) : NULL;
    Py_XDECREF(sequences);
    return result;
}

static PyObject *reader_resume_from(Reader *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (!has_arguments(count, 2))
        return NULL;
    long long before = PyLong_AsLongLong(arguments[1]) - 1;
    if (PyErr_Occurred())
        return NULL;
    if (Py_TYPE(arguments[0]) != Py_TYPE((PyObject *)self)) {
        PyErr_SetString(PyExc_TypeError, "a reader resumes from a reader");
        return NULL;
    }
    const Reader *earlier = (const Reader *)arguments[0];
    self->last = earlier->last < before ? earlier->last : before;
    if (self->every && self->last >= 0)
        self->history_after = 0;
    self->received = earlier->received;
    self->skipped = earlier->skipped;
    self->overruns = earlier->overruns;
    self->rejected = earlier->rejected;
    Py_RETURN_NONE;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    PyObject *segment;
    unsigned slots;
    unsigned long long slot_bytes, first_slot;
    long long history;
    int every;
    if (named != NULL ||
        !PyArg_ParseTuple(arguments, "OIKKpL", &segment, &slots, &slot_bytes, &first_slot, &every, &history))
        return NULL;
    Reader *self = new_on_ring(type, segment);
    if (self == NULL)
        return NULL;
    self->slots = slots < MAX_SLOTS ? slots : MAX_SLOTS;
    self->slot_bytes = slot_bytes;
    self->first_slot = first_slot;
    self->every = (char)every;
    self->last = -1;
    long long newest = history ? (long long)(load64(self->ring + TAIL) >> 8) : 0;
    self->history_after = newest > history ? newest - history : 0;
    self->history_end = newest ? newest : -1;
    return (PyObject *)self;
}

static void reader_dealloc(Reader *self)
{
    PyObject *type = (PyObject *)Py_TYPE((PyObject *)self);
    Py_XDECREF(self->segment);
    Py_XDECREF(self->described);
    Py_XDECREF(self->record);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* ---- the module ---------------------------------------------------------------------------------------------- */

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef writer_methods[] = {
    {"claim", (PyCFunction)writer_claim, METH_O, NULL},
    {"publish", FAST(writer_publish), METH_FASTCALL, NULL},
    {"close", (PyCFunction)writer_close, METH_O, NULL},
    {"watch", (PyCFunction)writer_watch, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef writer_properties[] = {
    {"loans", (getter)writer_loans, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef writer_members[] = {
    {"segment", T_OBJECT_EX, offsetof(Writer, segment), READONLY, NULL},
    {"next_sequence", T_ULONGLONG, offsetof(Writer, next_sequence), READONLY, NULL},
    {"lost", T_ULONGLONG, offsetof(Writer, lost), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_methods, writer_methods},
    {Py_tp_members, writer_members},
    {Py_tp_getset, writer_properties},
    {0, NULL},
};

static PyType_Spec writer_spec = {"framebus.ring._ring_c.Writer", sizeof(Writer), 0, Py_TPFLAGS_DEFAULT, writer_slots};

static PyMethodDef claim_methods[] = {
    {"abandon", (PyCFunction)claim_abandon, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyObject *claim_memory(PyObject *self, void *nothing)
{
    (void)nothing;
    Py_INCREF(self);
    return self;
}

static PyGetSetDef claim_properties[] = {
    {"memory", claim_memory, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef claim_members[] = {
    {"writer", T_OBJECT_EX, offsetof(Claim, writer), READONLY, NULL},
    {"slot", T_OBJECT_EX, offsetof(Claim, number), READONLY, NULL},
    {"is_open", T_OBJECT_EX, offsetof(Claim, is_open), READONLY, NULL},
    {"now_ns", T_OBJECT_EX, offsetof(Claim, now_ns), READONLY, NULL},
    {"now_wall_ns", T_OBJECT_EX, offsetof(Claim, now_wall_ns), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot claim_slots[] = {
    {Py_tp_dealloc, claim_dealloc},
    {Py_tp_methods, claim_methods},
    {Py_tp_members, claim_members},
    {Py_tp_getset, claim_properties},
    {Py_bf_getbuffer, claim_buffer},
    {0, NULL},
};

static PyType_Spec claim_spec = {
    "framebus.ring._ring_c.Claim", sizeof(Claim), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, claim_slots};

static PyMethodDef reader_methods[] = {
    {"take", (PyCFunction)reader_take, METH_NOARGS, NULL},
    {"look", (PyCFunction)reader_look, METH_O, NULL},
    {"sleep", FAST(reader_sleep), METH_FASTCALL, NULL},
    {"rehearse", (PyCFunction)reader_rehearse, METH_NOARGS, NULL},
    {"report_to", (PyCFunction)reader_report_to, METH_O, NULL},
    {"held", (PyCFunction)reader_held, METH_NOARGS, NULL},
    {"resume_from", FAST(reader_resume_from), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef reader_members[] = {
    {"segment", T_OBJECT_EX, offsetof(Reader, segment), READONLY, NULL},
    {"last", T_LONGLONG, offsetof(Reader, last), READONLY, NULL},
    {"received", T_ULONGLONG, offsetof(Reader, received), READONLY, NULL},
    {"skipped", T_ULONGLONG, offsetof(Reader, skipped), READONLY, NULL},
    {"overruns", T_ULONGLONG, offsetof(Reader, overruns), READONLY, NULL},
    {"rejected", T_ULONGLONG, offsetof(Reader, rejected), READONLY, NULL},
    {"leases", T_UINT, offsetof(Reader, leases), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods},
    {Py_tp_members, reader_members},
    {0, NULL},
};

static PyType_Spec reader_spec = {"framebus.ring._ring_c.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, reader_slots};

static PyMemberDef lease_members[] = {
    {"reader", T_OBJECT_EX, offsetof(Lease, reader), READONLY, NULL},
    {"header", T_OBJECT_EX, offsetof(Lease, header), 0, NULL},
    {"slot", T_UINT, offsetof(Lease, slot), READONLY, NULL},
    {"sequence", T_ULONGLONG, offsetof(Lease, sequence), READONLY, NULL},
    {"skipped", T_OBJECT_EX, offsetof(Lease, skipped), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot lease_slots[] = {
    {Py_tp_dealloc, lease_dealloc},
    {Py_tp_members, lease_members},
    {Py_bf_getbuffer, lease_buffer},
    {0, NULL},
};

static PyType_Spec lease_spec = {
    "framebus.ring._ring_c.Lease", sizeof(Lease), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, lease_slots};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "framebus.ring._ring_c", .m_size = -1};

PyMODINIT_FUNC PyInit__ring_c(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *headers = PyImport_ImportModule("framebus.ring.frame_header"), *errors = PyImport_ImportModule("framebus.errors");
    if (module == NULL || headers == NULL || errors == NULL)
        return NULL;
    header_type = PyObject_GetAttrString(headers, "FrameHeader");
    check_description = PyObject_GetAttrString(headers, "check_description");
    layout_mismatch = PyObject_GetAttrString(errors, "LayoutMismatch");
    Py_DECREF(headers);
    Py_DECREF(errors);
    PyObject *writer_type = PyType_FromSpec(&writer_spec), *reader_type = PyType_FromSpec(&reader_spec);
    claim_type = PyType_FromSpec(&claim_spec);
    lease_type = PyType_FromSpec(&lease_spec);
    fd_name = PyUnicode_InternFromString("fd");
    address_name = PyUnicode_InternFromString("address");
    if (!header_type || !check_description || !layout_mismatch || !writer_type || !reader_type || !claim_type || !lease_type ||
        !fd_name || !address_name ||
        PyModule_AddObjectRef(module, "Writer", writer_type) ||
        PyModule_AddObjectRef(module, "Reader", reader_type) || PyModule_AddObjectRef(module, "Lease", lease_type) ||
        PyModule_AddObjectRef(module, "Claim", claim_type) ||
        PyModule_AddIntConstant(module, "TAIL", TAIL) || PyModule_AddIntConstant(module, "EVENT", EVENT) ||
        PyModule_AddIntConstant(module, "SLOT_TABLE", SLOT_TABLE) ||
        PyModule_AddIntConstant(module, "SLOT_HEADER_BYTES", SLOT_HEADER_BYTES) ||
        PyModule_AddIntConstant(module, "SLOT_FIELDS", SLOT_FIELDS) ||
        PyModule_AddIntConstant(module, "SLOT_DESCRIPTION", SLOT_DESCRIPTION) ||
        PyModule_AddIntConstant(module, "DESCRIPTION_BYTES", DESCRIPTION_BYTES) ||
        PyModule_AddIntConstant(module, "RECORD_RECEIVED", RECORD_RECEIVED) ||
        PyModule_AddIntConstant(module, "RECORD_COUNTERS", RECORD_COUNTERS) ||
        PyModule_AddIntConstant(module, "MAX_SLOTS", MAX_SLOTS) || PyModule_AddIntConstant(module, "LOOKS", LOOKS) ||
        PyModule_AddIntConstant(module, "MAX_MESSAGE_BYTES", MAX_MESSAGE_BYTES) ||
        PyModule_AddIntConstant(module, "LOCK_SLOTS", LOCK_SLOTS)) {
        Py_DECREF(module);
        return NULL;
    }
    Py_DECREF(writer_type);
    Py_DECREF(reader_type);
    return module;
}
