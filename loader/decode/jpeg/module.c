/* The Python module `loader.decode._jpeg`: one function, which lets other threads run while it works. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "jpeg.h"

static bool fits(const Frame *frame, Box box, Py_ssize_t out_bytes) {
    bool inside = box.top >= 0 && box.left >= 0 && box.height > 0 && box.width > 0 &&
                  box.height <= frame->height - box.top && box.width <= frame->width - box.left;
    return inside && (size_t)out_bytes >= 3 * (size_t)box.height * (size_t)box.width;
}

PyDoc_STRVAR(decode_box_doc,
             "decode_box(data, top, left, height, width, out, /)\n--\n\n"
             "Decode a box of a JPEG into out, uint8[height, width, 3] without gaps.\n\n"
             "Returns False, with out in any state, where this is not a JPEG that it decodes or not its box.");

static PyObject *decode_box_python(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer data, out;
    Box box;
    if (!PyArg_ParseTuple(args, "y*iiiiw*", &data, &box.top, &box.left, &box.height, &box.width, &out)) return NULL;
    bool done;
    Py_BEGIN_ALLOW_THREADS;
    Frame frame;
    done = read_frame(data.buf, (size_t)data.len, &frame) && fits(&frame, box, out.len) &&
           decode_box(&frame, box, out.buf);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    return PyBool_FromLong(done);
}

static PyMethodDef functions[] = {{"decode_box", decode_box_python, METH_VARARGS, decode_box_doc}, {NULL, NULL, 0, NULL}};

static int check_processor(PyObject *module) {
    (void)module;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) return 0;
    PyErr_SetString(PyExc_ImportError, "this processor has no AVX2");
    return -1;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, check_processor}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_jpeg", .m_doc = "Boxes of baseline JPEGs to pixels.", .m_size = 0,
    .m_methods = functions, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModuleDef_Init(&definition); }
