/* A QEMU TCG plugin: a model of the stack by which a CPU predicts returns, while the hypervisor runs. The stack has 16 entries. A call
 * takes one more, and the oldest is lost; a return uses one up. None is left when a guest has run, and when the CPU has slept.
 *
 * Says for each return of the hypervisor's that ever found none: "empty ADDRESS TIMES"; and at the end "returns TIMES", of all.
 * What ran before the first guest does not count.
 *
 * Argument: out=FILE. The plugin interface (version 1) is declared by hand: Debian ships no header for it. */

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t plugin_id;
enum { CB_NO_REGISTERS = 0 };

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

#define HYPERVISOR_START 0xffff800000000000u
#define HYPERVISOR_END   0xffff880000000000u
#define ENTRIES 16
#define MAX_CPUS 8

/* For each CPU: the entries that are left, and whether a guest ever ran. All CPUs are executed by one of QEMU's threads. */
static unsigned left[MAX_CPUS], guest_ran[MAX_CPUS];
static uint64_t returns;

/* A return, once translated; kept for good, since QEMU keeps the address. */
struct place {
    struct place *next;
    uint64_t address, empty;
};
#define BUCKETS 4096
static struct place *places[BUCKETS];
static FILE *out;

static struct place *place_of(uint64_t address)
{
    struct place **bucket = &places[(address ^ address >> 12) % BUCKETS];
    for (struct place *place = *bucket; place; place = place->next)
        if (place->address == address)
            return place;
    struct place *place = calloc(1, sizeof *place);
    if (!place)
        abort();
    place->address = address;
    place->next = *bucket;
    return *bucket = place;
}

static void on_call(unsigned cpu, void *data)
{
    (void)data;
    if (left[cpu % MAX_CPUS] < ENTRIES)
        left[cpu % MAX_CPUS]++;
}

static void on_return(unsigned cpu, void *data)
{
    cpu %= MAX_CPUS;
    if (!guest_ran[cpu])
        return;
    returns++;
    if (left[cpu])
        left[cpu]--;
    else
        ((struct place *)data)->empty++;
}

static void on_sleep(unsigned cpu, void *data)
{
    (void)data;
    left[cpu % MAX_CPUS] = 0;
}

/* Code of a guest's kernel, or else of a guest's user or of firmware. */
static void on_others(unsigned cpu, void *is_kernel)
{
    left[cpu % MAX_CPUS] = 0;
    guest_ran[cpu % MAX_CPUS] |= is_kernel != NULL;
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *tb)
{
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t address = qemu_plugin_insn_vaddr(insn);
        if (address < HYPERVISOR_START || address >= HYPERVISOR_END) {
            void *is_kernel = address >= HYPERVISOR_END ? tb : NULL;
            qemu_plugin_register_vcpu_tb_exec_cb(tb, on_others, CB_NO_REGISTERS, is_kernel);
            return;
        }
        switch (*(const uint8_t *)qemu_plugin_insn_data(insn)) {
        case 0xe8:
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_call, CB_NO_REGISTERS, NULL);
            break;
        case 0xc3:
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_return, CB_NO_REGISTERS, place_of(address));
            break;
        case 0xf4:
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_sleep, CB_NO_REGISTERS, NULL);
            break;
        }
    }
}

static void at_exit(plugin_id id, void *data)
{
    (void)id;
    (void)data;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct place *place = places[i]; place; place = place->next)
            if (place->empty)
                fprintf(out, "empty %" PRIx64 " %" PRIu64 "\n", place->address, place->empty);
    fprintf(out, "returns %" PRIu64 "\n", returns);
    fclose(out);
}

__attribute__((visibility("default")))
int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "w");
    if (!out) {
        fprintf(stderr, "returns: out=FILE is required, and FILE must be writable\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}
