/* A graphics card for llama.cpp that is none: its memory is the CPU's, and the CPU computes what it is asked.

   What lies where, and how large each device's buffers become, llama.cpp decides before anything runs, by what a device
   says of itself; this one says what a CUDA card says (ggml-cuda.cu of the pinned xllamacpp): memory of its own, no
   other's buffers, pinned host buffers, every operation, batches of 32 tokens or more worth fetching weights for.
   tests/fake_gpu.py builds and registers it. The structs are ggml-backend-impl.h's of API version 3. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define MOST 8
#define GPU 1

typedef struct buft buft;
typedef struct buffer buffer;
typedef struct backend backend;
typedef struct device device;
typedef struct reg reg;
typedef struct event { device *dev; void *context; } event;
typedef void tensor;

struct buft {
    const char *(*get_name)(buft *);
    buffer *(*alloc_buffer)(buft *, size_t);
    void *alloc_buffer_n;
    size_t (*get_alignment)(buft *);
    void *get_max_size, *get_alloc_size, *get_alloc_size_n;
    bool (*is_host)(buft *);
    device *dev;
    void *context;
};
struct buffer { void *functions[11]; buft *type; void *context; size_t size; int usage; };
struct backend {
    void *guid;
    const char *(*get_name)(backend *);
    void (*free)(backend *);
    void *data[5];
    void (*synchronize)(backend *);
    void *plans[4];
    int (*graph_compute)(backend *, void *);
    void (*event_record)(backend *, event *);
    void (*event_wait)(backend *, event *);
    void *graph_optimize;
    device *dev;
    void *context;
};
typedef struct {
    const char *name, *description;
    size_t free, total;
    int type;
    const char *id;
    bool async, host_buffer, from_host_ptr, events, mmap;
} props;
struct device {
    const char *(*get_name)(device *);
    const char *(*get_description)(device *);
    void (*get_memory)(device *, size_t *, size_t *);
    int (*get_type)(device *);
    void (*get_props)(device *, props *);
    backend *(*init)(device *, const char *);
    buft *(*get_buft)(device *);
    buft *(*get_host_buft)(device *);
    void *from_host_ptr;
    bool (*supports_op)(device *, const tensor *);
    bool (*supports_buft)(device *, buft *);
    bool (*offload_op)(device *, const tensor *);
    event *(*event_new)(device *);
    void (*event_free)(device *, event *);
    void (*event_synchronize)(device *, event *);
    reg *registry;
    void *context;
};
struct reg {
    int api_version;
    const char *(*get_name)(reg *);
    size_t (*count)(reg *);
    device *(*get)(reg *, size_t);
    void *(*get_proc)(reg *, const char *);
    void *context;
};

static int cards;
static size_t memory[MOST];
static size_t most_at_once = (size_t) -1;
static char names[MOST][16], ids[MOST][16];
static device devices[MOST];
static buft bufts[MOST], host;
static reg registry;
static char guid[MOST][16];

static buft *(*cpu_buft)(void);
static buffer *(*cpu_alloc)(buft *, size_t);
static backend *(*cpu_backend)(void);
static void (*backend_free)(backend *);
static int (*cpu_compute)(backend *, void *);
static size_t (*tensor_rows)(const tensor *);
static const char *(*tensor_op)(const tensor *);

static size_t number(device *dev) { return (size_t) (dev - devices); }
static const char *buft_name(buft *type) { return type == &host ? "CUDA_Host" : names[type - bufts]; }
static size_t alignment(buft *type) { (void) type; return 32; } /* what the CPU gives; CUDA pads to 128 */
static bool yes(buft *type) { (void) type; return true; }
static bool no(buft *type) { (void) type; return false; }

static buffer *alloc(buft *type, size_t size) {
    bool full = type != &host && (size > memory[type - bufts] || size > most_at_once);
    buffer *made = full ? NULL : cpu_alloc(cpu_buft(), size);
    if (made) made->type = type;
    return made;
}

static const char *backend_name(backend *self) { return names[number(self->dev)]; }
static void free_backend(backend *self) { backend_free(self->context); free(self); }
static void wait_for(backend *self) { (void) self; }
static int compute(backend *self, void *graph) { return cpu_compute(self->context, graph); }
static void ignore(backend *self, event *one) { (void) self; (void) one; }

static const char *name(device *dev) { return names[number(dev)]; }
static const char *description(device *dev) { (void) dev; return "a card that is none"; }
static void get_memory(device *dev, size_t *free, size_t *total) { *free = *total = memory[number(dev)]; }
static int type(device *dev) { (void) dev; return GPU; }
static void get_props(device *dev, props *said) {
    size_t size = memory[number(dev)];
    *said = (props){name(dev), description(dev), size, size, GPU, ids[number(dev)], true, true, false, true, true};
}
static backend *init(device *dev, const char *ignored) {
    backend *made = calloc(1, sizeof *made);
    (void) ignored;
    made->guid = guid[number(dev)];
    made->get_name = backend_name, made->free = free_backend, made->synchronize = wait_for;
    made->graph_compute = compute, made->event_record = made->event_wait = ignore;
    made->dev = dev, made->context = cpu_backend();
    return made;
}
static buft *get_buft(device *dev) { return &bufts[number(dev)]; }
static buft *get_host_buft(device *dev) { (void) dev; return &host; }
static bool supports_op(device *dev, const tensor *op) { (void) dev; (void) op; return true; }
static bool supports_buft(device *dev, buft *type) { return type == &bufts[number(dev)]; }
static bool offload_op(device *dev, const tensor *op) {
    const char *kind = tensor_op(op);
    (void) dev;
    /* GET_ROWS never; the others by their rows, which for matrix products of one sequence are its tokens. */
    return !(kind[0] == 'G' && kind[4] == 'R') && tensor_rows(op) >= 32;
}
static event *event_new(device *dev) { event *made = calloc(1, sizeof *made); made->dev = dev; return made; }
static void event_free(device *dev, event *one) { (void) dev; free(one); }
static void event_synchronize(device *dev, event *one) { (void) dev; (void) one; }

static const char *reg_name(reg *self) { (void) self; return "CUDA"; }
static size_t count(reg *self) { (void) self; return (size_t) cards; }
static device *get(reg *self, size_t index) { (void) self; return &devices[index]; }
static void *get_proc(reg *self, const char *wanted) { (void) self; (void) wanted; return NULL; }

/* Lets no card allocate more than that in one piece, whatever it says that it has free. */
void refuse_above(size_t bytes) { most_at_once = bytes; }

/* Registers so many cards of `bytes` each with the llama.cpp in the shared library `path`; 0 if it went well. */
int add_cards(const char *path, int how_many, const size_t *bytes) {
    void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    void (*add)(reg *) = library ? (void (*)(reg *)) dlsym(library, "ggml_backend_register") : NULL;
    if (!add || how_many > MOST) return 1;
    cpu_buft = (buft *(*)(void)) dlsym(library, "ggml_backend_cpu_buffer_type");
    cpu_alloc = (buffer *(*)(buft *, size_t)) dlsym(library, "ggml_backend_buft_alloc_buffer");
    cpu_backend = (backend *(*)(void)) dlsym(library, "ggml_backend_cpu_init");
    backend_free = (void (*)(backend *)) dlsym(library, "ggml_backend_free");
    cpu_compute = (int (*)(backend *, void *)) dlsym(library, "ggml_backend_graph_compute");
    tensor_rows = (size_t (*)(const tensor *)) dlsym(library, "ggml_nrows");
    tensor_op = (const char *(*)(const tensor *)) dlsym(library, "ggml_op_desc");
    if (!cpu_buft || !cpu_alloc || !cpu_backend || !backend_free || !cpu_compute || !tensor_rows || !tensor_op) return 1;
    cards = how_many;
    host = (buft){buft_name, alloc, NULL, alignment, NULL, NULL, NULL, yes, &devices[0], NULL};
    registry = (reg){3, reg_name, count, get, get_proc, NULL};
    for (int i = 0; i < cards; i++) {
        memory[i] = bytes[i];
        snprintf(names[i], sizeof names[i], "CUDA%d", i);
        snprintf(ids[i], sizeof ids[i], "0000:0%d:00.0", i);
        snprintf(guid[i], sizeof guid[i], "card that is %d", i);
        bufts[i] = (buft){buft_name, alloc, NULL, alignment, NULL, NULL, NULL, no, &devices[i], NULL};
        devices[i] = (device){
            name, description, get_memory, type, get_props, init, get_buft, get_host_buft, NULL, supports_op,
            supports_buft, offload_op, event_new, event_free, event_synchronize, &registry, NULL,
        };
    }
    add(&registry);
    return 0;
}
