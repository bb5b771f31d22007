/* Warps a camera's planes into columns of the panorama: positions, interpolation, colours and blending in one pass.
 *
 * services/stitcher/rendering/compiled.py prepares the arguments of warp(), and docs/decisions/0003-a-compiled-warp.md
 * says why OpenCV does not do this. _warp.h renders a block of 16 pixels in portable C, and _warp_avx2.h the same bytes
 * by AVX2, which is chosen at run time. Nothing is kept between calls, and the interpreter's lock is released while
 * pixels are computed.
 *
 * No number from Python is trusted: arrays are checked for type, shape and strides before the first byte is read, and
 * positions are clamped to the planes where they are used.
 *
 * Sources: PEP 384 (stable ABI), PEP 489 (multi-phase initialisation), PEP 3118 (buffers).
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "_warp.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define WITH_AVX2 1
#include "_warp_avx2.h"
#else
#define WITH_AVX2 0
#endif

enum {
    MAX_SAMPLES = 1 << 16, /* width and height of a plane */
    WHOLE_SHARE = 256,     /* a share of 1 */
    MAX_ARRAYS = 9,        /* arguments of warp() that are arrays */
};

/* A rectangle of the panorama, and the source of its pixels. */
typedef struct {
    uint8_t *target; /* the first pixel */
    ptrdiff_t stride;
    int32_t rows, width, blocks;
    const Place *places;          /* of each block, row by row, as the following arrays */
    const uint16_t *seen;         /* a bit for each pixel that the camera sees, the lowest first; NULL: all */
    const Brightness *brightness; /* NULL: 1 */
    const uint16_t *shares;       /* this camera's share of each pixel, over the existing content; NULL: all */
    Picture picture;
} Task;

static bool has_avx2;

/* ---- pixels --------------------------------------------------------------------------------------------------- */

/* Store the pixels of a block that is cut by the edge of the rectangle or the picture, or blended with the content. */
static void store_partly(uint8_t *target, const uint8_t *bgr, int count, uint16_t seen, const uint16_t *shares)
{
    for (int pixel = 0; pixel < count; pixel++, target += 3, bgr += 3) {
        bool is_seen = seen >> pixel & 1;
        for (int colour = 0; colour < 3; colour++) {
            uint32_t value = is_seen ? bgr[colour] : 0;
            if (shares) {
                uint32_t share = shares[pixel] < WHOLE_SHARE ? shares[pixel] : WHOLE_SHARE;
                value = (target[colour] * (WHOLE_SHARE - share) + value * share + WHOLE_SHARE / 2) / WHOLE_SHARE;
            }
            target[colour] = (uint8_t)value;
        }
    }
}

/* Return whether the block can be stored as a whole: all of its pixels belong to this camera alone. */
static bool is_whole(const Task *task, int32_t block, ptrdiff_t at)
{
    return !task->shares && (block + 1) * BLOCK_PIXELS <= task->width && (!task->seen || task->seen[at] == ALL_SEEN);
}

/* Fill one row. Whole blocks are rendered in runs, so that constants are loaded once per run. */
static void fill_row(const Task *task, MakeBlocks *make, int32_t row)
{
    for (int32_t block = 0; block < task->blocks;) {
        ptrdiff_t at = (ptrdiff_t)row * task->blocks + block;
        const Brightness *brightness = task->brightness ? task->brightness + at : NULL;
        uint8_t *target = task->target + row * task->stride + (ptrdiff_t)block * BLOCK_BYTES;
        int32_t run = 0;
        while (block + run < task->blocks && is_whole(task, block + run, at + run))
            run++;
        if (run) {
            make(&task->picture, task->places + at, brightness, run, target);
            block += run;
            continue;
        }
        uint8_t bgr[BLOCK_BYTES] = {0}; /* a whole block, which may extend beyond the rectangle */
        uint16_t seen = task->seen ? task->seen[at] : ALL_SEEN;
        if (seen)
            make(&task->picture, task->places + at, brightness, 1, bgr);
        int32_t first = block * BLOCK_PIXELS, left = task->width - first;
        const uint16_t *shares = task->shares ? task->shares + (ptrdiff_t)row * task->width + first : NULL;
        store_partly(target, bgr, left < BLOCK_PIXELS ? left : BLOCK_PIXELS, seen, shares);
        block++;
    }
}

static void fill(const Task *task, MakeBlocks *make)
{
    for (int32_t row = 0; row < task->rows; row++)
        fill_row(task, make, row);
}

static MakeBlocks *choose(bool may_use_avx2)
{
#if WITH_AVX2
    if (may_use_avx2 && has_avx2)
        return make_blocks_avx2;
#endif
    (void)may_use_avx2;
    return make_blocks;
}

/* ---- the boundary --------------------------------------------------------------------------------------------- */

/* The array arguments of a call, which are released together. */
typedef struct {
    Py_buffer views[MAX_ARRAYS];
    int count;
} Arrays;

static void release(Arrays *arrays)
{
    while (arrays->count > 0)
        PyBuffer_Release(&arrays->views[--arrays->count]);
}

/* Requirements of an array. */
typedef struct {
    const char *name;
    char format; /* as of Python's struct */
    int axes;
    int packed_axes; /* number of axes, from the last one, whose elements lie side by side */
} Kind;

/* Get an array of a kind, and let `arrays` hold it. Return NULL with an exception if it is another kind of array. */
static const Py_buffer *get_array(Arrays *arrays, PyObject *object, const Kind *kind, int flags)
{
    Py_buffer *view = &arrays->views[arrays->count];
    if (PyObject_GetBuffer(object, view, PyBUF_STRIDES | PyBUF_FORMAT | flags) < 0)
        return NULL;
    arrays->count++;
    if (view->format == NULL || view->format[0] != kind->format || view->format[1] != 0 || view->ndim != kind->axes) {
        PyErr_Format(PyExc_TypeError, "%s: an array of format '%c' and %d axes is needed, not '%s' and %d", kind->name,
                     kind->format, kind->axes, view->format ? view->format : "B", view->ndim);
        return NULL;
    }
    Py_ssize_t packed = view->itemsize;
    for (int axis = view->ndim - 1; axis >= 0; axis--) {
        bool is_packed = axis >= view->ndim - kind->packed_axes;
        /* The bound keeps products, such as a number of blocks times BLOCK_BYTES, within 32 bits. */
        if (view->shape[axis] < 1 || view->shape[axis] > INT32_MAX / 64) {
            PyErr_Format(PyExc_ValueError, "%s: %zd elements along axis %d", kind->name, view->shape[axis], axis);
            return NULL;
        }
        if (view->shape[axis] > 1 && (is_packed ? view->strides[axis] != packed : view->strides[axis] < packed)) {
            PyErr_Format(PyExc_ValueError, "%s: a stride of %zd along axis %d", kind->name, view->strides[axis], axis);
            return NULL;
        }
        packed *= view->shape[axis];
    }
    return view;
}

/* Get an array of `rows` by `columns`, and by `last` if that is not 0, without gaps. Return NULL for None, or with an
 * exception. */
static const void *get_table(Arrays *arrays, PyObject *object, const Kind *kind, Py_ssize_t rows, Py_ssize_t columns,
                             Py_ssize_t last)
{
    if (object == Py_None)
        return NULL;
    const Py_buffer *view = get_array(arrays, object, kind, 0);
    if (view == NULL)
        return NULL;
    if (view->shape[0] != rows || view->shape[1] != columns || (last && view->shape[2] != last)) {
        PyErr_Format(PyExc_ValueError, "%s: a shape that begins with (%zd, %zd) is needed, not (%zd, %zd)", kind->name, rows,
                     columns, view->shape[0], view->shape[1]);
        return NULL;
    }
    return view->buf;
}

/* Get one plane of a picture. Return -1 with an exception. */
static int get_plane(Arrays *arrays, PyObject *object, const char *name, Plane *plane)
{
    const Kind kind = {name, 'B', 2, 1};
    const Py_buffer *view = get_array(arrays, object, &kind, 0);
    if (view == NULL)
        return -1;
    if (view->shape[0] < 2 || view->shape[1] < 2 || view->shape[0] > MAX_SAMPLES || view->shape[1] > MAX_SAMPLES ||
        view->strides[0] > INT32_MAX / view->shape[0]) {
        PyErr_Format(PyExc_ValueError, "%s: a plane of %zdx%zd samples, %zd bytes a row", name, view->shape[1],
                     view->shape[0], view->strides[0]);
        return -1;
    }
    plane->samples = view->buf;
    plane->stride = view->strides[0];
    plane->height = (int32_t)view->shape[0];
    plane->width = (int32_t)view->shape[1];
    return 0;
}

/* Return the binary logarithm of 1 or 2, or -1 with an exception. */
static int shift_of(int step)
{
    if (step == 1 || step == 2)
        return step - 1;
    PyErr_Format(PyExc_ValueError, "chroma_step: 1 or 2 is needed, not %d", step);
    return -1;
}

/* Set the fields of the planes that do not depend on their samples. Return -1 with an exception. */
static int describe_planes(Picture *picture, int step_y, int step_x, int black)
{
    Plane *u = &picture->u, *v = &picture->v;
    if (u->width != v->width || u->height != v->height || u->stride != v->stride) {
        PyErr_SetString(PyExc_ValueError, "u and v: planes of one shape and stride are needed");
        return -1;
    }
    if (black < 0 || black > 255) {
        PyErr_Format(PyExc_ValueError, "black: 0 to 255 is needed, not %d", black);
        return -1;
    }
    int shift_y = shift_of(step_y), shift_x = shift_of(step_x);
    if (shift_y < 0 || shift_x < 0)
        return -1;
    u->shift_y = v->shift_y = shift_y;
    u->shift_x = v->shift_x = shift_x;
    /* As in MPEG-2, a sample for two rows lies in the middle of them, and one for two columns lies on the first. */
    u->offset_y = v->offset_y = shift_y ? 1 << (POSITION_BITS - 1) : 0;
    picture->black = (int16_t)(black * WEIGHT_ONE);
    return 0;
}

/* Find the rectangle in the panorama. Return -1 with an exception if it does not lie in it. */
static int place_target(Task *task, const Py_buffer *out, int row, int column, int width)
{
    if (out->shape[2] != 3) {
        PyErr_Format(PyExc_ValueError, "out: pixels of 3 bytes are needed, not of %zd", out->shape[2]);
        return -1;
    }
    /* Subtract from the shape, because the sum of two ints might overflow. */
    if (row < 0 || column < 0 || width < 1 || task->rows > out->shape[0] - row || width > out->shape[1] - column) {
        PyErr_Format(PyExc_ValueError, "%dx%d pixels from column %d and row %d on are not all within %zdx%zd", width,
                     (int)task->rows, column, row, out->shape[1], out->shape[0]);
        return -1;
    }
    if (width > task->blocks * BLOCK_PIXELS || width <= (task->blocks - 1) * BLOCK_PIXELS) {
        PyErr_Format(PyExc_ValueError, "places: %d blocks are not the right number for %d pixels", (int)task->blocks, width);
        return -1;
    }
    task->stride = out->strides[0];
    task->target = (uint8_t *)out->buf + row * task->stride + (ptrdiff_t)column * 3;
    task->width = width;
    return 0;
}

/* The array arguments of warp(). */
typedef struct {
    PyObject *out, *places, *seen, *y, *u, *v, *factors, *brightness, *shares;
} Given;

/* Get the arrays of a task, and check the numbers against them. Return -1 with an exception. */
static int get_arrays(Arrays *arrays, const Given *given, Task *task, int row, int column, int width)
{
    const Kind of_out = {"out", 'B', 3, 2}, of_places = {"places", 'i', 3, 3}, of_factors = {"factors", 'h', 2, 2};
    const Kind of_seen = {"seen", 'H', 2, 2}, of_brightness = {"brightness", 'h', 3, 3}, of_shares = {"shares", 'H', 2, 2};
    const Py_buffer *out = get_array(arrays, given->out, &of_out, PyBUF_WRITABLE);
    const Py_buffer *places = out ? get_array(arrays, given->places, &of_places, 0) : NULL;
    if (places == NULL)
        return -1;
    if (places->shape[2] != 4) {
        PyErr_Format(PyExc_ValueError, "places: 4 numbers a block are needed, not %zd", places->shape[2]);
        return -1;
    }
    task->rows = (int32_t)places->shape[0];
    task->blocks = (int32_t)places->shape[1];
    task->places = places->buf;
    if (place_target(task, out, row, column, width) < 0)
        return -1;
    task->seen = get_table(arrays, given->seen, &of_seen, task->rows, task->blocks, 0);
    if (!PyErr_Occurred())
        task->brightness = get_table(arrays, given->brightness, &of_brightness, task->rows, task->blocks, 2);
    if (!PyErr_Occurred())
        task->shares = get_table(arrays, given->shares, &of_shares, task->rows, task->width, 0);
    const int16_t *factors = PyErr_Occurred() ? NULL : get_table(arrays, given->factors, &of_factors, 3, 3, 0);
    if (factors)
        memcpy(task->picture.factors, factors, sizeof task->picture.factors);
    else if (!PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "factors: an array is needed, not None");
    Picture *picture = &task->picture;
    return PyErr_Occurred() || get_plane(arrays, given->y, "y", &picture->luma) < 0 ||
                   get_plane(arrays, given->u, "u", &picture->u) < 0 || get_plane(arrays, given->v, "v", &picture->v) < 0
               ? -1
               : 0;
}

PyDoc_STRVAR(warp_doc,
             "warp(out, row, column, width, places, seen, y, u, v, chroma_step, black, factors, brightness, shares, "
             "may_use_avx2, /)\n--\n\nFill a rectangle of a panorama from a camera's planes.");

static PyObject *warp(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Given given;
    Task task = {0};
    int row, column, width, step_y, step_x, black, may_use_avx2;
    if (!PyArg_ParseTuple(arguments, "OiiiOOOOO(ii)iOOOp:warp", &given.out, &row, &column, &width, &given.places,
                          &given.seen, &given.y, &given.u, &given.v, &step_y, &step_x, &black, &given.factors,
                          &given.brightness, &given.shares, &may_use_avx2))
        return NULL;
    Arrays arrays = {.count = 0};
    if (get_arrays(&arrays, &given, &task, row, column, width) < 0 ||
        describe_planes(&task.picture, step_y, step_x, black) < 0) {
        release(&arrays);
        return NULL;
    }
    /* The buffers stay valid without the lock: as long as they are held, NumPy does not resize or free them. */
    PyThreadState *state = PyEval_SaveThread();
    fill(&task, choose(may_use_avx2));
    PyEval_RestoreThread(state);
    release(&arrays);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"warp", warp, METH_VARARGS, warp_doc},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
#if WITH_AVX2
    has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
#endif
    return PyModule_AddObjectRef(module, "HAS_AVX2", has_avx2 ? Py_True : Py_False);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "services.stitcher.rendering._warp_c",
    .m_doc = PyDoc_STR("Warps planes into a panorama."),
    .m_methods = methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__warp_c(void) { return PyModuleDef_Init(&definition); }
