/*
 * A 32-bit process storm: no C library, every way into the kernel that a 32-bit program has (`int 0x80` and what the
 * vDSO chooses for this processor), and the state that a switch between processes must keep: thread-local segments,
 * LDT, floating point. Prints `storm32: ok`, or the step that failed.
 */
typedef unsigned int u32;
typedef unsigned long long u64;

enum {
	NR_exit = 1, NR_fork = 2, NR_read = 3, NR_write = 4, NR_execve = 11, NR_getpid = 20, NR_kill = 37, NR_pipe = 42, NR_getppid = 64,
	NR_munmap = 91, NR_setitimer = 104, NR_wait4 = 114, NR_clone = 120, NR_modify_ldt = 123, NR_mprotect = 125,
	NR_sched_yield = 158, NR_rt_sigaction = 174, NR_mmap2 = 192, NR_futex = 240, NR_set_thread_area = 243
};
enum { SIGILL = 4, SIGTRAP = 5, SIGFPE = 8, SIGUSR1 = 10, SIGSEGV = 11, SIGALRM = 14 };
enum { AT_SYSINFO = 32, SA_SIGINFO = 4, SA_NODEFER = 0x40000000, PAGE = 4096 };

struct user_desc { u32 entry, base, limit, flags; };
/* 32-bit data, limit in pages, usable. */
enum { FLAT_DATA = 1 | 16 | 64 };

static u32 vsyscall;

static int int80(int nr, u32 a, u32 b, u32 c, u32 d, u32 e)
{
	int result;
	asm volatile("int $0x80" : "=a"(result) : "0"(nr), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
	return result;
}

static int vdso(int nr, u32 a, u32 b, u32 c, u32 d, u32 e)
{
	int result;
	asm volatile("call *%[entry]" : "=a"(result)
		: "0"(nr), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e), [entry] "m"(vsyscall) : "memory");
	return result;
}

#define FIRST(f, nr, a, b, c, d, e, ...) f(nr, (u32)(a), (u32)(b), (u32)(c), (u32)(d), (u32)(e))
/* A call with as many arguments as it has, at least one. */
#define sys(nr, ...) FIRST(vdso, nr, __VA_ARGS__, 0, 0, 0, 0, 0)

static void print(const char *text)
{
	u32 length = 0;
	while (text[length])
		length++;
	sys(NR_write, 1, text, length);
}

static void fail(const char *step)
{
	print("storm32: failed: ");
	print(step);
	print("\n");
	sys(NR_exit, 1);
}

static void check(int holds, const char *step)
{
	if (!holds)
		fail(step);
}

static int wait_for(int pid)
{
	int status = -1;
	check(sys(NR_wait4, pid, &status, 0, 0) == pid, "wait4");
	return status;
}

/* Runs a step in a child, so that what it spoils is gone with it. */
static void in_child(void (*step)(u32), u32 argument)
{
	int pid = sys(NR_fork, 0);
	if (!pid) {
		step(argument);
		sys(NR_exit, 0);
	}
	check(pid > 0, "fork");
	check(wait_for(pid) == 0, "a child failed");
}

/* Two children at once, each with an argument of its own, switching as often as they can. */
static void in_two(void (*step)(u32))
{
	int pids[2];
	for (u32 i = 0; i < 2; i++) {
		pids[i] = sys(NR_fork, 0);
		if (!pids[i]) {
			step(i + 1);
			sys(NR_exit, 0);
		}
		check(pids[i] > 0, "fork of two");
	}
	for (u32 i = 0; i < 2; i++)
		check(wait_for(pids[i]) == 0, "one of two failed");
}

/* ---- signals ---- */

struct action { void (*handler)(int, u32 *, u32 *); u32 flags; u32 restorer; u64 mask; } __attribute__((packed));

static volatile u32 signals, last_signal, fault_address, skip;
/* Where the saved instruction pointer and flags lie in a 32-bit `ucontext`, in words. */
enum { UC_EIP = 5 + 14, UC_EFLAGS = 5 + 16 };

static void on_signal(int signal, u32 *info, u32 *context)
{
	signals++;
	last_signal = signal;
	fault_address = info[3];
	if (skip)
		context[UC_EIP] += skip;
	if (signal == SIGSEGV && !skip)
		sys(NR_mprotect, fault_address & ~(PAGE - 1), PAGE, 3);
	if (signal == SIGTRAP && signals >= 50)
		context[UC_EFLAGS] &= ~0x100;
}

static void handle(int signal)
{
	/* No restorer: the kernel takes the vDSO's return. */
	struct action action = { on_signal, SA_SIGINFO | SA_NODEFER, 0, 0 };
	check(sys(NR_rt_sigaction, signal, &action, 0, 8) == 0, "rt_sigaction");
}

static void signal_step(u32 unused)
{
	handle(SIGUSR1);
	for (int i = 0; i < 500; i++)
		sys(NR_kill, sys(NR_getpid, 0), SIGUSR1);
	check(signals == 500 && last_signal == SIGUSR1, "signals to itself");

	struct { u32 interval_s, interval_us, s, us; } timer = { 0, 2000, 0, 2000 };
	handle(SIGALRM);
	signals = 0;
	check(sys(NR_setitimer, 0, &timer, 0) == 0, "setitimer");
	while (signals < 5)
		int80(NR_getppid, 0, 0, 0, 0, 0);
	timer.s = timer.us = timer.interval_us = 0;
	sys(NR_setitimer, 0, &timer, 0);
}

static void fault_step(u32 unused)
{
	volatile char *pages = (char *)sys(NR_mmap2, 0, 16 * PAGE, 0, 0x22, -1);
	check((u32)pages < 0xfffff000, "mmap2");
	handle(SIGSEGV);
	for (u32 i = 0; i < 16; i++) {
		pages[i * PAGE + 7] = i;
		check(fault_address == (u32)&pages[i * PAGE + 7], "a fault's address");
	}
	check(signals == 16, "a fault for each page");
	check(sys(NR_munmap, pages, 16 * PAGE) == 0, "munmap");

	int signals_of[] = { SIGILL, SIGTRAP, SIGFPE };
	for (u32 i = 0; i < 3; i++)
		handle(signals_of[i]);
	skip = 2;
	asm volatile("ud2");
	check(last_signal == SIGILL, "ud2");
	asm volatile("divl %%ecx" :: "a"(1), "d"(0), "c"(0));
	check(last_signal == SIGFPE, "division by zero");
	skip = 0;
	signals = 0;
	asm volatile("int3");
	check(last_signal == SIGTRAP && signals == 1, "int3");
	/* The one who may not: a general protection fault becomes SIGSEGV. */
	skip = 1;
	asm volatile("hlt");
	check(last_signal == SIGSEGV, "hlt");
	/* Overflow, an exception that only 32-bit code can raise by an instruction of its own. */
	skip = 0;
	signals = 0;
	last_signal = 0;
	asm volatile("movl $0x7fffffff, %%eax\n\taddl $1, %%eax\n\tinto" ::: "eax", "cc");
	check(last_signal == SIGSEGV, "into");
	/* Single steps. */
	signals = 0;
	asm volatile("pushfl\n\torl $0x100, (%%esp)\n\tpopfl\n\tmovl $200, %%ecx\n1:\tdecl %%ecx\n\tjnz 1b"
		::: "ecx", "memory", "cc");
	check(last_signal == SIGTRAP && signals >= 50, "single steps");
}

/* ---- segments ---- */

static u32 cells[8];

static void tls_step(u32 which)
{
	struct user_desc desc = { -1, (u32)&cells[which], 0xfffff, FLAT_DATA };
	cells[which] = 0x1000 + which;
	check(sys(NR_set_thread_area, &desc) == 0, "set_thread_area");
	asm volatile("movl %0, %%gs" :: "r"(desc.entry * 8 + 3));
	for (int i = 0; i < 2000; i++) {
		u32 value;
		sys(NR_sched_yield, 0);
		asm volatile("movl %%gs:0, %0" : "=r"(value));
		check(value == 0x1000 + which, "a thread-local segment after a switch");
	}
}

static void ldt_step(u32 which)
{
	struct user_desc desc = { which, (u32)&cells[which], 0xfffff, FLAT_DATA };
	cells[which] = 0x2000 + which;
	check(sys(NR_modify_ldt, 1, &desc, sizeof(desc)) == 0, "modify_ldt");
	asm volatile("movl %0, %%fs" :: "r"(which * 8 + 7));
	for (int i = 0; i < 2000; i++) {
		u32 value;
		sys(NR_sched_yield, 0);
		asm volatile("movl %%fs:0, %0" : "=r"(value));
		check(value == 0x2000 + which, "an LDT's segment after a switch");
	}
	/* Another base in the same entry holds from the next load on. */
	desc.base = (u32)&cells[which + 4];
	cells[which + 4] = 0x3000 + which;
	check(sys(NR_modify_ldt, 1, &desc, sizeof(desc)) == 0, "modify_ldt again");
	u32 value;
	asm volatile("movl %1, %%fs\n\tmovl %%fs:0, %0" : "=r"(value) : "r"(which * 8 + 7));
	check(value == 0x3000 + which, "an LDT's entry changed");
}

/* ---- floating point ---- */

static void float_step(u32 which)
{
	u32 in[4] = { which, which * 3, which * 5, which * 7 }, out[4];
	for (int i = 0; i < 2000; i++) {
		int integer = which * 1000 + i, result;
		asm volatile("movups %2, %%xmm5\n\tfildl %3\n\t"
			"int $0x80\n\t"
			"fistpl %1\n\tmovups %%xmm5, %0"
			: "=m"(out), "=m"(result) : "m"(in), "m"(integer), "a"(NR_sched_yield) : "memory", "xmm5");
		for (int j = 0; j < 4; j++)
			check(out[j] == in[j], "xmm5 after a switch");
		check(result == integer, "st(0) after a switch");
	}
}

/* ---- threads ---- */

static volatile u32 turn, turns_taken;
enum { CLONE_THREAD_FLAGS = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x200000, ROUNDS = 2000 };

static void hand_over(u32 from)
{
	turn = 1 - from;
	sys(NR_futex, &turn, 1, 1);
	while (turn != from)
		sys(NR_futex, &turn, 0, 1 - from, 0);
}

static volatile u32 thread_gone = 1;

static void thread_body(void)
{
	while (turn != 1)
		sys(NR_futex, &turn, 0, 0, 0);
	for (u32 i = 0; i < ROUNDS; i++) {
		turns_taken++;
		if (i + 1 < ROUNDS)
			hand_over(1);
	}
	turn = 0;
	sys(NR_futex, &turn, 1, 1);
	sys(NR_exit, 0);
}

static void thread_step(u32 unused)
{
	static char stack[16384] __attribute__((aligned(16)));
	u32 *top = (u32 *)(stack + sizeof(stack));
	*--top = 0;
	*--top = (u32)thread_body;
	int tid;
	/* The new thread has nothing on its stack but where to go. The last argument: cleared and woken at its end. */
	asm volatile("pushl %%ebp\n\tint $0x80\n\tpopl %%edx\n\ttestl %%eax, %%eax\n\tjnz 1f\n\tpushl %%edx\n\tret\n1:\tmovl %%edx, %%ebp"
		: "=a"(tid) : "0"(NR_clone), "b"(CLONE_THREAD_FLAGS), "c"(top), "d"(0), "S"(0), "D"(&thread_gone) : "memory");
	check(tid > 0, "clone");
	for (u32 i = 0; i < ROUNDS; i++) {
		turns_taken++;
		hand_over(0);
	}
	while (thread_gone)
		sys(NR_futex, &thread_gone, 0, 1, 0);
	check(turns_taken == 2 * ROUNDS, "turns of two threads");
}

/* ---- processes ---- */

static void process_step(const char *self, char **environment)
{
	const char *arguments[] = { self, "child", 0 };
	for (int i = 0; i < 40; i++) {
		int pid = i & 1 ? sys(NR_fork, 0) : int80(NR_fork, 0, 0, 0, 0, 0);
		if (!pid) {
			sys(NR_execve, self, arguments, environment);
			sys(NR_exit, 1);
		}
		check(pid > 0, "fork");
		check(wait_for(pid) == 42 << 8, "a program's status");
	}
	/* Many at once. */
	int pids[64];
	for (int i = 0; i < 64; i++) {
		pids[i] = sys(NR_fork, 0);
		if (!pids[i])
			sys(NR_exit, i);
		check(pids[i] > 0, "fork of many");
	}
	for (int i = 0; i < 64; i++)
		check(wait_for(pids[i]) == i << 8, "one of many");
	int ends[2], value;
	check(sys(NR_pipe, ends) == 0, "pipe");
	int pid = sys(NR_fork, 0);
	if (!pid) {
		for (int i = 0; i < 1000; i++)
			sys(NR_write, ends[1], &i, 4);
		sys(NR_exit, 0);
	}
	for (int i = 0; i < 1000; i++)
		check(sys(NR_read, ends[0], &value, 4) == 4 && value == i, "a pipe's words");
	check(wait_for(pid) == 0, "a pipe's writer");
}

__attribute__((used)) static void start(u32 *stack)
{
	u32 argc = stack[0];
	char **argv = (char **)(stack + 1), **environment = argv + argc + 1, **end = environment;
	while (*end)
		end++;
	for (u32 *aux = (u32 *)(end + 1); aux[0]; aux += 2)
		if (aux[0] == AT_SYSINFO)
			vsyscall = aux[1];
	if (!vsyscall) {
		static const char none[] = "storm32: failed: no vDSO\n";
		int80(NR_write, 1, (u32)none, sizeof(none) - 1, 0, 0);
		int80(NR_exit, 1, 0, 0, 0, 0);
	}
	if (argc > 1)
		sys(NR_exit, 42);
	check(sys(NR_getpid, 0) == int80(NR_getpid, 0, 0, 0, 0, 0), "getpid, two ways");
	process_step(argv[0], environment);
	in_child(signal_step, 0);
	in_child(fault_step, 0);
	in_two(tls_step);
	in_two(ldt_step);
	in_two(float_step);
	in_child(thread_step, 0);
	print("storm32: ok\n");
	sys(NR_exit, 0);
}

asm(".globl _start\n_start:\n\tmovl %esp, %eax\n\tpushl %eax\n\tcall start\n");
