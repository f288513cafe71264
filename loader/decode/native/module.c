/* The Python module `loader.decode._native`. Its functions let other threads run while they work. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "jpeg.h"
#include "resize.h"

enum { LARGEST_SIDE = 65535 }; /* JPEG's limit; products of sides stay far below 2^63 */

static bool in_frame(const Frame *frame, Box box) {
    return box.top >= 0 && box.left >= 0 && box.height > 0 && box.width > 0 &&
           box.height <= frame->height - box.top && box.width <= frame->width - box.left;
}

static size_t rgb_bytes(int height, int width) { return 3 * (size_t)height * (size_t)width; }

static bool window_fits(const Resize *to, Py_ssize_t out_bytes) {
    return to->size > 0 && to->top >= 0 && to->left >= 0 && to->height <= LARGEST_SIDE && to->width <= LARGEST_SIDE &&
           to->size <= to->height - to->top && to->size <= to->width - to->left &&
           (size_t)out_bytes >= rgb_bytes(to->size, to->size);
}

PyDoc_STRVAR(decode_box_doc,
             "decode_box(data, top, left, height, width, out, /)\n--\n\n"
             "Decode a box of a JPEG into out, uint8[height, width, 3] without gaps.\n\n"
             "Returns False, with out in any state, for JPEGs that it does not handle and boxes outside the image.");

static PyObject *decode_box_python(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer data, out;
    Box box;
    if (!PyArg_ParseTuple(args, "y*iiiiw*", &data, &box.top, &box.left, &box.height, &box.width, &out)) return NULL;
    bool done;
    Py_BEGIN_ALLOW_THREADS;
    Frame frame;
    done = read_frame(data.buf, (size_t)data.len, &frame) && in_frame(&frame, box) &&
           (size_t)out.len >= rgb_bytes(box.height, box.width) && decode_box(&frame, box, out.buf);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    return PyBool_FromLong(done);
}

/* Accept rows of RGB pixels with any distance between the rows, as in a crop of a larger image. */
static bool picture_of(const Py_buffer *view, Picture *picture) {
    if (view->ndim != 3 || view->itemsize != 1 || view->shape[2] != 3 || view->strides[2] != 1 || view->strides[1] != 3)
        return false;
    if (view->shape[0] < 1 || view->shape[1] < 1 || view->shape[0] > LARGEST_SIDE || view->shape[1] > LARGEST_SIDE)
        return false;
    const uint8_t *pixels = view->buf;
    *picture = (Picture){pixels, pixels + (view->shape[0] - 1) * view->strides[0] + 3 * view->shape[1],
                         view->strides[0], (int)view->shape[0], (int)view->shape[1]};
    return view->strides[0] >= 3 * view->shape[1];
}

PyDoc_STRVAR(resize_doc,
             "resize(pixels, out, resized_height, resized_width, window_top, window_left, size, bicubic, flip, /)\n"
             "--\n\n"
             "Resize uint8[height, width, 3] and write a square window of that into out, uint8[size, size, 3].\n\n"
             "Returns False, with out unchanged, for other memory layouts and for windows that do not fit.");

static PyObject *resize_python(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *pixels;
    Py_buffer view, out;
    Resize to;
    int bicubic, flip;
    if (!PyArg_ParseTuple(args, "Ow*iiiiipp", &pixels, &out, &to.height, &to.width, &to.top, &to.left, &to.size,
                          &bicubic, &flip))
        return NULL;
    if (PyObject_GetBuffer(pixels, &view, PyBUF_STRIDES | PyBUF_FORMAT)) {
        PyBuffer_Release(&out);
        return NULL;
    }
    to.bicubic = bicubic;
    to.flip = flip;
    Picture picture;
    bool done = window_fits(&to, out.len) && picture_of(&view, &picture);
    Py_BEGIN_ALLOW_THREADS;
    done = done && resize_picture(&picture, &to, out.buf);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&view);
    PyBuffer_Release(&out);
    return PyBool_FromLong(done);
}

static PyMethodDef functions[] = {
    {"decode_box", decode_box_python, METH_VARARGS, decode_box_doc},
    {"resize", resize_python, METH_VARARGS, resize_doc},
    {NULL, NULL, 0, NULL},
};

static int check_processor(PyObject *module) {
    (void)module;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) return 0;
    PyErr_SetString(PyExc_ImportError, "this processor has no AVX2");
    return -1;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, check_processor}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_doc = "Boxes of JPEGs, decoded and resized.", .m_size = 0,
    .m_methods = functions, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
