/* The time-critical steps of a hand-over, compiled.
 *
 * framebus/ring/_ring_py.py does the same in plain Python. framebus/ring/__init__.py numbers the steps, P1 to P8 and
 * R1 to R6, and explains their order; docs/spec.md specifies the bytes. _layout.h and _docs.h are generated from
 * those modules. Every call that may block releases the GIL.
 *
 * The module keeps its objects in a per-module state, to allow each interpreter of a process to import it. Its types
 * do not support garbage collection, because their objects cannot be part of a reference cycle unless a caller
 * constructs one: they reference segments, arrays and headers, which never reference them.
 *
 * Sources: fcntl(2), F_OFD_SETLK; futex(2); send(2); PEP 384 (stable ABI), PEP 489 (multi-phase initialisation), PEP
 * 573 (module state), PEP 3118 (buffers). */

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

#include "_docs.h"
#include "_layout.h"

enum { MAX_AXES = 3 };

/* The module's references. An object reaches them through its type, which keeps the module alive. */
typedef struct {
    PyTypeObject *writer_type, *claim_type, *reader_type, *lease_type, *header_type;
    PyObject *check_description, *layout_mismatch;
    PyObject *fd_name, *address_name;
} State;

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

/* Acquire or release the lock of a slot. Return -1 with errno on failure. */
static int set_lock(int fd, short type, unsigned slot)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = LOCK_SLOTS + slot, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock);
}

/* Acquire the lock of a slot. Return 1 if acquired, 0 if another process holds a conflicting lock, -1 with an
 * exception. */
static int try_lock(int fd, short type, unsigned slot)
{
    if (set_lock(fd, type, slot) == 0)
        return 1;
    if (errno == EAGAIN || errno == EACCES) /* POSIX allows either */
        return 0;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* Release the lock of a slot. Do nothing in a forked child, where fd is -1, to avoid releasing the parent's lock.
 * Return 0, or -1 with an exception. */
static int unlock(int fd, unsigned slot)
{
    if (fd < 0 || set_lock(fd, F_UNLCK, slot) == 0)
        return 0;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* Return the segment's descriptor, -1 in a forked child, or below -1 with an exception. */
static int segment_fd(const State *state, PyObject *segment)
{
    PyObject *value = PyObject_GetAttr(segment, state->fd_name);
    if (value == NULL)
        return -2;
    long fd = PyLong_AsLong(value);
    Py_DECREF(value);
    return fd == -1 && PyErr_Occurred() ? -2 : (int)fd;
}

/* Return the address of the segment's mapping, or NULL with an exception. */
static uint8_t *segment_address(const State *state, PyObject *segment)
{
    PyObject *value = PyObject_GetAttr(segment, state->address_name);
    if (value == NULL)
        return NULL;
    void *address = PyLong_AsVoidPtr(value);
    Py_DECREF(value);
    return address;
}

/* The common initial members of Writer and Reader. */
typedef struct {
    PyObject_HEAD
    const State *state; /* belongs to the module, which lives as long as the object's type */
    PyObject *segment;
    uint8_t *ring;
} OnRing;

/* Return a zeroed object that references the segment, or NULL with an exception. */
static void *new_on_ring(PyTypeObject *type, PyObject *segment)
{
    const State *state = PyType_GetModuleState(type);
    uint8_t *ring = state ? segment_address(state, segment) : NULL;
    OnRing *self = ring ? (OnRing *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0) : NULL;
    if (self == NULL)
        return NULL;
    self->state = state;
    self->segment = Py_NewRef(segment);
    self->ring = ring;
    return self;
}

/* Set a field. Release the previous object last, because its destructor may run arbitrary code. */
static void set_reference(PyObject **field, PyObject *value)
{
    PyObject *before = *field;
    *field = value;
    Py_XDECREF(before);
}

/* The parameters of a method: their names in order, of which the first `required` ones are mandatory. */
typedef struct {
    const char *method;
    int required, count;
    const char *names[5];
} Parameters;

/* Return the number of the parameter that a keyword names, or -1 with an exception. */
static int named_argument(const Parameters *parameters, PyObject *keyword)
{
    for (int number = 0; number < parameters->count; number++)
        if (PyUnicode_CompareWithASCIIString(keyword, parameters->names[number]) == 0)
            return number;
    PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", parameters->method, keyword);
    return -1;
}

/* Assign positional and keyword arguments to parameters, as a Python function does. An omitted argument is NULL in
 * `found`. Return 0, or -1 with a TypeError. */
static int sort_arguments(const Parameters *parameters, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords,
                          PyObject **found)
{
    if (count > parameters->count) {
        PyErr_Format(PyExc_TypeError, "%s() takes %d arguments but %zd were given", parameters->method,
                     parameters->count, count);
        return -1;
    }
    for (int number = 0; number < parameters->count; number++)
        found[number] = number < count ? arguments[number] : NULL;
    for (Py_ssize_t given = 0, end = keywords ? PyTuple_Size(keywords) : 0; given < end; given++) {
        int number = named_argument(parameters, PyTuple_GetItem(keywords, given));
        if (number < 0)
            return -1;
        if (found[number]) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%s'", parameters->method,
                         parameters->names[number]);
            return -1;
        }
        found[number] = arguments[count + given];
    }
    for (int number = 0; number < parameters->required; number++)
        if (found[number] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument: '%s'", parameters->method,
                         parameters->names[number]);
            return -1;
        }
    return 0;
}

/* The parameters of a C function that implements a METH_FASTCALL | METH_KEYWORDS method. */
#define ARGUMENTS PyObject *const *arguments, Py_ssize_t count, PyObject *keywords

/* ---- the publisher ------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    const State *state; /* as in OnRing */
    PyObject *segment;
    uint8_t *ring;
    unsigned long long slot_bytes, first_slot, epoch, next_sequence, lost;
    unsigned slots, loans, max_loans;
    int newest; /* -1 before the first frame */
    char closed;
    uint8_t order[MAX_SLOTS]; /* from the oldest to the newest */
    uint8_t loaned[MAX_SLOTS]; /* 1: a claim is open; 2: it was lost, but views on the slot's array remain */
    PyObject *arrays;          /* a list with one array for each slot; NULL before watch() */
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

/* Claim the slot. Return 1 if it is claimed, 0 if another process holds it, -1 with an exception. */
static int claim_slot(Writer *self, int fd, unsigned slot, const char *description, size_t length)
{
    int locked = fd < 0 ? 0 : try_lock(fd, F_WRLCK, slot); /* P1 */
    if (locked <= 0)
        return locked;
    uint8_t *header = slot_header(self->ring, slot);
    store64(header, 0); /* P2: prevents subscribers from accepting the slot if this process dies before P5 */
    __atomic_thread_fence(__ATOMIC_RELEASE); /* prevents later stores, as of the pixels, from being visible before P2 */
    ((uint64_t *)header)[EPOCH_WORD] = self->epoch; /* P3: a part of the header; the caller writes the pixels */
    memcpy(header + SLOT_DESCRIPTION, description, length);
    return 1;
}

static PyObject *new_claim(Writer *self, int fd, unsigned slot)
{
    Claim *claim = PyObject_New(Claim, self->state->claim_type);
    if (claim == NULL) {
        set_lock(fd, F_UNLCK, slot);
        return NULL;
    }
    claim->writer = (Writer *)Py_NewRef((PyObject *)self);
    claim->slot = slot;
    claim->is_open = Py_NewRef(Py_True);
    claim->number = PyLong_FromUnsignedLong(slot);
    claim->now_ns = PyLong_FromLongLong(now_ns());
    claim->now_wall_ns = PyLong_FromLongLong(read_clock(CLOCK_REALTIME));
    self->loaned[slot] = 1;
    self->loans++;
    if (claim->number == NULL || claim->now_ns == NULL || claim->now_wall_ns == NULL) {
        Py_DECREF((PyObject *)claim); /* gives the slot back */
        return NULL;
    }
    return (PyObject *)claim;
}

/* Return whether there are views on the slot's array. Only the list and the views reference the array. */
static int is_viewed(const Writer *self, unsigned slot)
{
    PyObject *array = self->arrays ? PyList_GetItem(self->arrays, slot) : NULL;
    if (array == NULL)
        PyErr_Clear();
    return array && Py_REFCNT(array) > 1;
}

/* Give back the slots of lost claims whose last view has gone since. Return 0, or -1 with an exception. */
static int sweep(Writer *self, int fd)
{
    for (unsigned slot = 0; slot < self->slots; slot++)
        if (self->loaned[slot] == 2 && !is_viewed(self, slot)) {
            if (unlock(fd, slot) < 0)
                return -1;
            self->loaned[slot] = 0;
            self->loans--;
            self->lost++;
        }
    return 0;
}

static PyObject *writer_claim(Writer *self, ARGUMENTS)
{
    static const Parameters parameters = {"claim", 1, 1, {"description"}};
    PyObject *described;
    char *description;
    Py_ssize_t length;
    if (sort_arguments(&parameters, arguments, count, keywords, &described) < 0)
        return NULL;
    int fd = segment_fd(self->state, self->segment);
    if (fd < -1 || PyBytes_AsStringAndSize(described, &description, &length) < 0)
        return NULL;
    if (length > SLOT_HEADER_BYTES - SLOT_DESCRIPTION) {
        PyErr_SetString(PyExc_ValueError, "the description is longer than a slot's header");
        return NULL;
    }
    if (self->closed)
        Py_RETURN_NONE;
    if (self->loans && sweep(self, fd) < 0)
        return NULL;
    if (self->loans >= self->max_loans)
        Py_RETURN_NONE;
    for (unsigned turn = 0; turn < 2 * self->slots; turn++) {
        /* Two passes, from old to new and back, because a subscriber may move its lease meanwhile, but only to a
         * newer frame. See Writer.claim() in claims.py. */
        unsigned slot = self->order[turn < self->slots ? turn : 2 * self->slots - 1 - turn];
        /* P1 skips the newest frame and the loans, because the locks of one publisher do not exclude each other. */
        if ((int)slot == self->newest || self->loaned[slot])
            continue;
        int claimed = claim_slot(self, fd, slot, description, (size_t)length);
        if (claimed)
            return claimed < 0 ? NULL : new_claim(self, fd, slot);
    }
    Py_RETURN_NONE;
}

/* Mark the claim as published or given back, and stop counting it. */
static void forget_claim(Claim *claim)
{
    set_reference(&claim->is_open, Py_NewRef(Py_False));
    claim->writer->loaned[claim->slot] = 0;
    claim->writer->loans--;
}

/* Unlock the slot of an open claim. Return 0, or -1 with an exception; then the claim stays open. */
static int give_back(Claim *claim)
{
    int fd = segment_fd(claim->writer->state, claim->writer->segment);
    if (fd < -1 || unlock(fd, claim->slot) < 0)
        return -1;
    forget_claim(claim);
    return 0;
}

static PyObject *claim_abandon(Claim *self, PyObject *nothing)
{
    (void)nothing;
    if (self->is_open == Py_True && give_back(self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static void claim_dealloc(Claim *self)
{
    PyObject *type = (PyObject *)Py_TYPE((PyObject *)self), *kind, *value, *trace;
    if (self->is_open == Py_True) {
        PyErr_Fetch(&kind, &value, &trace);
        if (is_viewed(self->writer, self->slot)) {
            self->writer->loaned[self->slot] = 2;
        } else if (give_back(self) == 0) {
            self->writer->lost++;
        } else {
            PyErr_WriteUnraisable(type);
            self->writer->loaned[self->slot] = 2; /* the next claim retries, see sweep() */
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

static PyObject *writer_watch(Writer *self, ARGUMENTS)
{
    static const Parameters parameters = {"watch", 1, 1, {"arrays"}};
    PyObject *arrays;
    if (sort_arguments(&parameters, arguments, count, keywords, &arrays) < 0)
        return NULL;
    if (!PyList_Check(arrays)) {
        PyErr_SetString(PyExc_TypeError, "a list of arrays is required");
        return NULL;
    }
    set_reference(&self->arrays, Py_NewRef(arrays));
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

static PyObject *writer_close(Writer *self, ARGUMENTS)
{
    static const Parameters parameters = {"close", 1, 1, {"finish"}};
    PyObject *finish;
    if (sort_arguments(&parameters, arguments, count, keywords, &finish) < 0)
        return NULL;
    self->closed = 1;
    /* claim() and publish() never release the GIL, so no other thread is in the middle of one now. */
    return PyObject_CallNoArgs(finish);
}

static void put_big_endian(char *at, uint64_t value)
{
    for (int byte = 0; byte < 8; byte++)
        at[byte] = (char)(value >> (56 - 8 * byte));
}

/* A copy of a message.Message, so that Python code which runs meanwhile cannot modify it. at[0] is unused. */
typedef struct {
    char content[MAX_MESSAGE_BYTES];
    Py_ssize_t length, at[MESSAGE_ITEMS];
} Message;

static int copy_message(PyObject *message, Message *copy)
{
    char *content;
    if (message == NULL || !PyTuple_Check(message) || PyTuple_Size(message) != MESSAGE_ITEMS) {
        PyErr_SetString(PyExc_TypeError, "a message is required");
        return -1;
    }
    if (PyBytes_AsStringAndSize(PyTuple_GetItem(message, CONTENT_ITEM), &content, &copy->length) < 0)
        return -1;
    int fits = copy->length <= MAX_MESSAGE_BYTES;
    for (int item = CONTENT_ITEM + 1; item < MESSAGE_ITEMS; item++) {
        Py_ssize_t at = copy->at[item] = PyLong_AsSsize_t(PyTuple_GetItem(message, item));
        if (PyErr_Occurred())
            return -1;
        fits &= at >= 0 && at <= copy->length - (item == SLOT_AT_ITEM ? 1 : (Py_ssize_t)sizeof(uint64_t));
    }
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "the message is too long, or an offset is outside it");
        return -1;
    }
    memcpy(copy->content, content, (size_t)copy->length);
    return 0;
}

static void send_all(PyObject *sockets, Py_ssize_t count, const Message *message)
{
    for (Py_ssize_t number = 0; number < count; number++) {
        PyObject *socket = PySequence_GetItem(sockets, number);
        int fd = socket ? PyObject_AsFileDescriptor(socket) : -1;
        Py_XDECREF(socket);
        if (fd < 0) {
            PyErr_Clear(); /* the frame is already published, and the other sockets must still be notified */
            continue;
        }
        ssize_t sent = send(fd, message->content, (size_t)message->length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0 && sent < message->length)
            shutdown(fd, SHUT_RDWR);
    }
}

static PyObject *writer_publish(Writer *self, ARGUMENTS)
{
    static const Parameters parameters = {
        "publish", 3, 5, {"claim", "captured_ns", "captured_wall_ns", "sockets", "message"}};
    PyObject *found[5];
    Message copy;
    if (sort_arguments(&parameters, arguments, count, keywords, found) < 0)
        return NULL;
    Py_ssize_t sockets = found[3] ? PySequence_Size(found[3]) : 0;
    if (sockets < 0 || (sockets && copy_message(found[4], &copy) < 0))
        return NULL;
    uint64_t captured_ns = (uint64_t)PyLong_AsLongLong(found[1]);
    uint64_t captured_wall_ns = PyErr_Occurred() ? 0 : (uint64_t)PyLong_AsLongLong(found[2]);
    if (PyErr_Occurred())
        return NULL;
    int fd = segment_fd(self->state, self->segment);
    if (fd < -1)
        return NULL;
    /* No Python code runs from here to P8, so the results of these checks stay valid. */
    Claim *claim = (Claim *)found[0];
    if (Py_TYPE(found[0]) != self->state->claim_type || claim->writer != self || claim->is_open != Py_True) {
        PyErr_SetString(PyExc_ValueError, "the claim is not an open one of this writer");
        return NULL;
    }
    if (fd < 0 || self->closed) {
        errno = EBADF;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    unsigned slot = claim->slot;
    uint64_t *words = (uint64_t *)slot_header(self->ring, slot), sequence = self->next_sequence;
    int64_t published_ns = now_ns();
    words[SEQUENCE_WORD] = sequence; /* P4: number it now, so that sequences follow the order of publication */
    words[CAPTURED_NS_WORD] = captured_ns;
    words[CAPTURED_WALL_NS_WORD] = captured_wall_ns;
    words[PUBLISHED_NS_WORD] = (uint64_t)published_ns;
    store64((uint8_t *)words, sequence); /* P5: a subscriber may lock the slot as soon as it is unlocked */
    if (unlock(fd, slot) < 0) /* P6 */
        return NULL;
    forget_claim(claim);
    store64(self->ring + TAIL, sequence << 8 | slot); /* P7: after P6, so that the slot is not locked */
    uint32_t *event = (uint32_t *)(self->ring + EVENT);
    __atomic_store_n(event, *event + 1, __ATOMIC_RELEASE); /* P8 */
    syscall(SYS_futex, event, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    self->next_sequence++;
    self->newest = (int)slot;
    /* Reorder at every publication rather than at the next claim, because several frames may be published in
     * between. */
    move_to_end(self, (uint8_t)slot);
    if (sockets) { /* last, because a socket's fileno() may run Python code, which must find the frame published */
        put_big_endian(copy.content + copy.at[SEQUENCE_AT_ITEM], sequence);
        copy.content[copy.at[SLOT_AT_ITEM]] = (char)slot;
        put_big_endian(copy.content + copy.at[CAPTURED_AT_ITEM], captured_ns);
        put_big_endian(copy.content + copy.at[PUBLISHED_AT_ITEM], (uint64_t)published_ns);
        send_all(found[3], sockets, &copy);
    }
    return PyLong_FromLongLong(published_ns);
}

static PyObject *writer_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    PyObject *segment;
    unsigned slots, max_loans;
    unsigned long long slot_bytes, first_slot, epoch, next_sequence;
    static char *names[] = {"segment", "slots", "slot_bytes", "first_slot", "epoch",
                            "next_sequence", "max_loans", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "OIKKKKI:Writer", names, &segment, &slots, &slot_bytes, &first_slot,
                                     &epoch, &next_sequence, &max_loans))
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
    for (unsigned slot = 0; slot < self->slots; slot++) { /* insertion sort by sequence */
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
    const State *state; /* as in OnRing */
    PyObject *segment;
    uint8_t *ring;
    unsigned slots;
    unsigned long long slot_bytes, first_slot;
    char every;
    long long last, history_after, history_end;
    unsigned long long received, skipped, overruns, rejected;
    unsigned leases;
    PyObject *record; /* the segment of the subscriber's record; NULL before report_to() */
    uint8_t *record_address;
    uint64_t report[RECORD_COUNTERS];
    uint8_t held[MAX_SLOTS + 1];
    PyObject *described; /* the parsed description, cached; NULL before the first frame */
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

static PyObject *new_lease(Reader *reader, int fd, unsigned slot, uint64_t sequence)
{
    Lease *lease = PyObject_New(Lease, reader->state->lease_type);
    if (lease == NULL) {
        set_lock(fd, F_UNLCK, slot);
        return NULL;
    }
    lease->reader = (Reader *)Py_NewRef((PyObject *)reader);
    lease->header = NULL;
    lease->slot = slot;
    lease->sequence = sequence;
    lease->skipped = PyLong_FromLong(0); /* a cached object, so this cannot fail */
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
    int fd = segment_fd(reader->state, reader->segment);
    if (fd < -1 || unlock(fd, self->slot) < 0) /* R6 */
        PyErr_WriteUnraisable(type);
    PyErr_Restore(kind, value, trace);
    if (self->slot != NO_SLOT) { /* after the unlock, to prevent it from releasing a new lease on the slot */
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
    } elements[] = {ELEMENTS, {NULL, "", 0}};
    Reader *reader = self->reader;
    PyObject *dtype = self->header ? PyTuple_GetItem(self->header, DTYPE_ITEM) : NULL;
    PyObject *shape = self->header ? PyTuple_GetItem(self->header, SHAPE_ITEM) : NULL;
    const char *name = dtype ? PyUnicode_AsUTF8AndSize(dtype, NULL) : "";
    int element = 0, axes = shape ? (int)PyTuple_Size(shape) : 0;
    if (name == NULL) {
        view->obj = NULL;
        return -1;
    }
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

/* Return a lease on the slot if it holds the frame of that sequence, else None; NULL with an exception. */
static PyObject *lease_slot(Reader *self, unsigned slot, uint64_t sequence)
{
    if (self->held[slot])
        Py_RETURN_NONE;
    int fd = segment_fd(self->state, self->segment);
    int locked = fd < -1 ? -1 : try_lock(fd, F_RDLCK, slot); /* R2 */
    if (locked < 0)
        return NULL;
    if (locked) {
        /* R3: the publisher may have claimed, written and unlocked the slot again between R1 and R2. */
        if (load64(slot_header(self->ring, slot)) == sequence)
            return new_lease(self, fd, slot, sequence);
        if (unlock(fd, slot) < 0)
            return NULL;
    }
    self->overruns++;
    Py_RETURN_NONE;
}

/* R1. The tail is untrusted, because another process writes it: validate the slot's number before using it. */
static int choose_newest(const Reader *self, unsigned *slot, uint64_t *sequence)
{
    uint64_t tail = load64(self->ring + TAIL);
    *slot = tail & 0xFF;
    *sequence = tail >> 8;
    return *sequence && (int64_t)*sequence > self->last && *slot < self->slots;
}

/* R1 in order: the lowest sequence after the last one. Like the tail, it is a hint until R3. */
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

/* R4: return the slot's header as a FrameHeader, and store its numbers. The parsed description is cached, because it
 * is nearly always that of the previous frame. */
static PyObject *read_header(Reader *self, unsigned slot, int64_t numbers[HEADER_NUMBERS])
{
    static const char is_signed[HEADER_NUMBERS] = SIGNED_NUMBERS;
    const uint8_t *at = slot_header(self->ring, slot);
    char description[DESCRIPTION_BYTES];
    memcpy(numbers, (const uint64_t *)at + EPOCH_WORD, HEADER_NUMBERS * sizeof *numbers);
    /* Copy it before validating it, because the memory is shared and a hostile publisher may change it meanwhile. */
    memcpy(description, at + SLOT_DESCRIPTION, sizeof description);
    if (self->described == NULL || memcmp(description, self->description, sizeof description)) {
        PyObject *described = PyObject_CallFunction(
            self->state->check_description, "y#K", description, (Py_ssize_t)sizeof description, self->slot_bytes);
        if (described == NULL)
            return NULL;
        set_reference(&self->described, described);
        memcpy(self->description, description, sizeof description);
    }
    PyObject *items = PyTuple_New(HEADER_ITEMS);
    for (int item = 0; items && item < HEADER_ITEMS; item++) {
        PyObject *value = item >= HEADER_NUMBERS
                              ? Py_XNewRef(PyTuple_GetItem(self->described, item - HEADER_NUMBERS))
                          : is_signed[item] ? PyLong_FromLongLong(numbers[item])
                                            : PyLong_FromUnsignedLongLong((uint64_t)numbers[item]);
        if (value == NULL)
            Py_CLEAR(items);
        else
            PyTuple_SetItem(items, item, value);
    }
    PyObject *arguments = items ? PyTuple_Pack(1, items) : NULL;
    Py_XDECREF(items);
    if (arguments == NULL)
        return NULL;
    newfunc new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    PyObject *header = new_tuple(self->state->header_type, arguments, NULL);
    Py_DECREF(arguments);
    return header;
}

static void write_report(const Reader *self)
{
    if (self->record_address)
        memcpy(self->record_address + RECORD_RECEIVED, self->report, sizeof self->report);
}

/* Read the header of a leased frame. Return 1 if it is valid, 0 if not, -1 with an exception. */
static int accept_frame(Reader *self, Lease *lease)
{
    long long last = self->last, sequence = (long long)lease->sequence;
    int64_t numbers[HEADER_NUMBERS], now = now_ns();
    /* Count the frame as seen even if its header is invalid. A subscriber that retried it would never get past it. */
    self->last = sequence;
    lease->header = read_header(self, lease->slot, numbers);
    if (lease->header == NULL && !PyErr_ExceptionMatches(self->state->layout_mismatch))
        return -1;
    PyErr_Clear();
    if (lease->header == NULL || numbers[SEQUENCE_ITEM] != sequence) {
        self->rejected++;
        return 0;
    }
    uint64_t skipped = last >= 0 ? lease->sequence - (uint64_t)last - 1 : 0;
    set_reference(&lease->skipped, PyLong_FromUnsignedLongLong(skipped));
    if (lease->skipped == NULL)
        return -1;
    self->received++;
    self->skipped += skipped;
    uint64_t age = numbers[CAPTURED_NS_ITEM] < now ? (uint64_t)now - (uint64_t)numbers[CAPTURED_NS_ITEM] : 0;
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
    for (int attempt = 0; attempt < MAX_RETRIES; attempt++) {
        int in_order = self->last < self->history_end || (self->every && self->last >= 0);
        if (!(in_order ? choose_following(self, &slot, &sequence) : choose_newest(self, &slot, &sequence)))
            break;
        PyObject *lease = lease_slot(self, slot, sequence);
        int accepted = lease == NULL ? -1 : (lease == Py_None ? 0 : accept_frame(self, (Lease *)lease));
        if (accepted > 0)
            return lease;
        Py_XDECREF(lease);
        if (accepted < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *reader_spin(Reader *self, ARGUMENTS)
{
    static const Parameters parameters = {"spin", 1, 1, {"until_ns"}};
    PyObject *until;
    if (sort_arguments(&parameters, arguments, count, keywords, &until) < 0)
        return NULL;
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

static PyObject *reader_sleep(Reader *self, ARGUMENTS)
{
    static const Parameters parameters = {"sleep", 2, 2, {"event", "timeout_ns"}};
    PyObject *found[2];
    if (sort_arguments(&parameters, arguments, count, keywords, found) < 0)
        return NULL;
    uint32_t event = (uint32_t)PyLong_AsUnsignedLongMask(found[0]);
    int64_t timeout_ns = PyErr_Occurred() ? 0 : PyLong_AsLongLong(found[1]);
    if (PyErr_Occurred())
        return NULL;
    struct timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    Py_BEGIN_ALLOW_THREADS
    syscall(SYS_futex, self->ring + EVENT, FUTEX_WAIT, event, &timeout, NULL, 0);
    Py_END_ALLOW_THREADS
    return reader_take(self, NULL);
}

static PyObject *reader_warm_up(Reader *self, PyObject *nothing)
{
    int fd = segment_fd(self->state, self->segment);
    unsigned slot = load64(self->ring + TAIL) & 0xFF;
    (void)nothing;
    if (fd < -1)
        return NULL;
    if (slot >= self->slots)
        Py_RETURN_NONE;
    int locked = try_lock(fd, F_RDLCK, NO_SLOT);
    if (locked < 0)
        return NULL;
    if (!locked)
        Py_RETURN_NONE;
    int64_t numbers[HEADER_NUMBERS];
    write_report(self);
    Lease *lease = (Lease *)new_lease(self, fd, NO_SLOT, 0);
    if (lease == NULL || (lease->header = read_header(self, slot, numbers)) != NULL)
        return (PyObject *)lease;
    PyObject *result = NULL;
    /* The header was read without the slot's lock, so the publisher may have been writing it. */
    if (PyErr_ExceptionMatches(self->state->layout_mismatch)) {
        PyErr_Clear();
        result = Py_NewRef(Py_None);
    }
    Py_DECREF((PyObject *)lease);
    return result;
}

static PyObject *reader_report_to(Reader *self, ARGUMENTS)
{
    static const Parameters parameters = {"report_to", 1, 1, {"record"}};
    PyObject *record;
    if (sort_arguments(&parameters, arguments, count, keywords, &record) < 0)
        return NULL;
    uint8_t *address = segment_address(self->state, record);
    if (address == NULL)
        return NULL;
    self->record_address = address;
    set_reference(&self->record, Py_NewRef(record));
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

static PyObject *reader_resume_from(Reader *self, ARGUMENTS)
{
    static const Parameters parameters = {"resume_from", 2, 2, {"earlier", "first_sequence"}};
    PyObject *found[2];
    if (sort_arguments(&parameters, arguments, count, keywords, found) < 0)
        return NULL;
    long long before = PyLong_AsLongLong(found[1]);
    if (PyErr_Occurred())
        return NULL;
    if (Py_TYPE(found[0]) != self->state->reader_type) {
        PyErr_SetString(PyExc_TypeError, "a reader resumes from a reader");
        return NULL;
    }
    const Reader *earlier = (const Reader *)found[0];
    before--;
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
    static char *names[] = {"segment", "slots", "slot_bytes", "first_slot", "every", "history", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "OIKKpL:Reader", names, &segment, &slots, &slot_bytes, &first_slot,
                                     &every, &history))
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
    // With `every`, continue in order after the history, also if the ring is still empty.
    self->history_end = self->every && history ? LLONG_MAX : (newest ? newest : -1);
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

#define METHOD(name, function, doc) \
    {name, (PyCFunction)(void (*)(void))(function), METH_FASTCALL | METH_KEYWORDS, PyDoc_STR(doc)}
#define MEMBER(name, type, owner, field, doc) {name, type, offsetof(owner, field), READONLY, PyDoc_STR(doc)}

static PyMethodDef writer_methods[] = {
    METHOD("claim", writer_claim, WRITER_CLAIM_DOC),
    METHOD("publish", writer_publish, WRITER_PUBLISH_DOC),
    METHOD("close", writer_close, WRITER_CLOSE_DOC),
    METHOD("watch", writer_watch, WRITER_WATCH_DOC),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef writer_properties[] = {
    {"loans", (getter)writer_loans, NULL, PyDoc_STR(WRITER_LOANS_DOC), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef writer_members[] = {
    MEMBER("segment", T_OBJECT_EX, Writer, segment, WRITER_SEGMENT_DOC),
    MEMBER("next_sequence", T_ULONGLONG, Writer, next_sequence, WRITER_NEXT_SEQUENCE_DOC),
    MEMBER("lost", T_ULONGLONG, Writer, lost, WRITER_LOST_DOC),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR(WRITER_DOC)},
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_methods, writer_methods},
    {Py_tp_members, writer_members},
    {Py_tp_getset, writer_properties},
    {0, NULL},
};

/* The types cannot be subclassed, to ensure that PyType_GetModuleState() on an object's own type finds the module. */
static PyType_Spec writer_spec = {"framebus.ring._ring_c.Writer", sizeof(Writer), 0, Py_TPFLAGS_DEFAULT, writer_slots};

static PyMethodDef claim_methods[] = {
    {"abandon", (PyCFunction)claim_abandon, METH_NOARGS, PyDoc_STR(CLAIM_ABANDON_DOC)},
    {NULL, NULL, 0, NULL},
};

static PyObject *claim_memory(PyObject *self, void *nothing)
{
    (void)nothing;
    return Py_NewRef(self);
}

static PyGetSetDef claim_properties[] = {
    {"memory", claim_memory, NULL, PyDoc_STR(CLAIM_MEMORY_DOC), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef claim_members[] = {
    MEMBER("writer", T_OBJECT_EX, Claim, writer, CLAIM_WRITER_DOC),
    MEMBER("slot", T_OBJECT_EX, Claim, number, CLAIM_SLOT_DOC),
    MEMBER("is_open", T_OBJECT_EX, Claim, is_open, CLAIM_IS_OPEN_DOC),
    MEMBER("now_ns", T_OBJECT_EX, Claim, now_ns, CLAIM_NOW_NS_DOC),
    MEMBER("now_wall_ns", T_OBJECT_EX, Claim, now_wall_ns, CLAIM_NOW_WALL_NS_DOC),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot claim_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR(CLAIM_DOC)},
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
    {"take", (PyCFunction)reader_take, METH_NOARGS, PyDoc_STR(READER_TAKE_DOC)},
    METHOD("spin", reader_spin, READER_SPIN_DOC),
    METHOD("sleep", reader_sleep, READER_SLEEP_DOC),
    {"warm_up", (PyCFunction)reader_warm_up, METH_NOARGS, PyDoc_STR(READER_WARM_UP_DOC)},
    METHOD("report_to", reader_report_to, READER_REPORT_TO_DOC),
    {"held", (PyCFunction)reader_held, METH_NOARGS, PyDoc_STR(READER_HELD_DOC)},
    METHOD("resume_from", reader_resume_from, READER_RESUME_FROM_DOC),
    {NULL, NULL, 0, NULL},
};

static PyMemberDef reader_members[] = {
    MEMBER("segment", T_OBJECT_EX, Reader, segment, READER_SEGMENT_DOC),
    MEMBER("last", T_LONGLONG, Reader, last, READER_LAST_DOC),
    MEMBER("received", T_ULONGLONG, Reader, received, READER_RECEIVED_DOC),
    MEMBER("skipped", T_ULONGLONG, Reader, skipped, READER_SKIPPED_DOC),
    MEMBER("overruns", T_ULONGLONG, Reader, overruns, READER_OVERRUNS_DOC),
    MEMBER("rejected", T_ULONGLONG, Reader, rejected, READER_REJECTED_DOC),
    MEMBER("leases", T_UINT, Reader, leases, READER_LEASES_DOC),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR(READER_DOC)},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods},
    {Py_tp_members, reader_members},
    {0, NULL},
};

static PyType_Spec reader_spec = {"framebus.ring._ring_c.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, reader_slots};

static PyObject *lease_is_inherited(Lease *self, void *nothing)
{
    (void)nothing;
    int fd = segment_fd(self->reader->state, self->reader->segment);
    return fd < -1 ? NULL : PyBool_FromLong(fd < 0);
}

static PyGetSetDef lease_properties[] = {
    {"is_inherited", (getter)lease_is_inherited, NULL, PyDoc_STR(LEASE_IS_INHERITED_DOC), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMemberDef lease_members[] = {
    MEMBER("reader", T_OBJECT_EX, Lease, reader, LEASE_READER_DOC),
    {"header", T_OBJECT_EX, offsetof(Lease, header), 0, PyDoc_STR(LEASE_HEADER_DOC)},
    MEMBER("slot", T_UINT, Lease, slot, LEASE_SLOT_DOC),
    MEMBER("sequence", T_ULONGLONG, Lease, sequence, LEASE_SEQUENCE_DOC),
    MEMBER("skipped", T_OBJECT_EX, Lease, skipped, LEASE_SKIPPED_DOC),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot lease_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR(LEASE_DOC)},
    {Py_tp_dealloc, lease_dealloc},
    {Py_tp_members, lease_members},
    {Py_tp_getset, lease_properties},
    {Py_bf_getbuffer, lease_buffer},
    {0, NULL},
};

static PyType_Spec lease_spec = {
    "framebus.ring._ring_c.Lease", sizeof(Lease), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, lease_slots};

/* Return an attribute of another module, or NULL with an exception. */
static PyObject *imported(const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *value = module ? PyObject_GetAttrString(module, name) : NULL;
    Py_XDECREF(module);
    return value;
}

/* Create a type and add it to the module. Return NULL with an exception on failure. */
static PyTypeObject *new_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

/* Export the numbers that were compiled in, by name. A test compares them with those of the Python modules. */
static int add_layout(PyObject *module)
{
    static const struct {
        const char *name;
        long long value;
    } numbers[] = {
#define NAME_AND_VALUE(name) {#name, name},
        EACH_NUMBER(NAME_AND_VALUE)
#undef NAME_AND_VALUE
    };
    PyObject *layout = PyDict_New();
    int failed = layout == NULL;
    for (size_t number = 0; !failed && number < sizeof numbers / sizeof *numbers; number++) {
        PyObject *value = PyLong_FromLongLong(numbers[number].value);
        failed = value == NULL || PyDict_SetItemString(layout, numbers[number].name, value) < 0;
        Py_XDECREF(value);
    }
    failed = failed || PyModule_AddObjectRef(module, "LAYOUT", layout) < 0;
    Py_XDECREF(layout);
    return failed ? -1 : 0;
}

/* If this fails, CPython frees the module, and with it the references that the state holds by then. */
static int module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    PyObject *header_type = imported("framebus.ring.frame_header", "FrameHeader");
    state->header_type = (PyTypeObject *)header_type;
    return header_type && (state->check_description = imported("framebus.ring.frame_header", "check_description")) &&
                   (state->layout_mismatch = imported("framebus.errors", "LayoutMismatch")) &&
                   (state->fd_name = PyUnicode_InternFromString("fd")) &&
                   (state->address_name = PyUnicode_InternFromString("address")) &&
                   (state->writer_type = new_type(module, &writer_spec)) &&
                   (state->claim_type = new_type(module, &claim_spec)) &&
                   (state->reader_type = new_type(module, &reader_spec)) &&
                   (state->lease_type = new_type(module, &lease_spec)) && add_layout(module) == 0
               ? 0
               : -1;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->writer_type);
    Py_VISIT(state->claim_type);
    Py_VISIT(state->reader_type);
    Py_VISIT(state->lease_type);
    Py_VISIT(state->header_type);
    Py_VISIT(state->check_description);
    Py_VISIT(state->layout_mismatch);
    return 0;
}

/* CPython never calls this while an object of the module's types exists: it keeps its type alive, which keeps the
 * module. */
static int module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->writer_type);
    Py_CLEAR(state->claim_type);
    Py_CLEAR(state->reader_type);
    Py_CLEAR(state->lease_type);
    Py_CLEAR(state->header_type);
    Py_CLEAR(state->check_description);
    Py_CLEAR(state->layout_mismatch);
    Py_CLEAR(state->fd_name);
    Py_CLEAR(state->address_name);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "framebus.ring._ring_c",
    .m_doc = PyDoc_STR("The time-critical steps of a hand-over, compiled; :mod:`framebus.ring._ring_py` is its twin."),
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__ring_c(void) { return PyModuleDef_Init(&definition); }
