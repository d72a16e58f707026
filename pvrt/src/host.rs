//! The stand-in for the hypervisor in host tests, one for each thread.
//!
//! By default the stand-in is a [`Loopback`]: a single domain whose event channels and grants lead back to the domain
//! itself. So a frontend and a backend, or a guest and a daemon, run in one test whatever domain numbers they use.
#![allow(unsafe_code)] // arguments come by address, as in the real thing

mod machine;
mod pools;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::mem::ManuallyDrop;
use ring_abi::domctl::{XEN_DOMCTL_GETDOMAININFO, XEN_DOMINF_DYING, XenDomctl, XenDomctlGetdomaininfo};
use ring_abi::errno::Errno;
use ring_abi::evtchn::*;
use ring_abi::grant::*;
use ring_abi::hypercall::*;
use ring_abi::shared::{SharedBytes, SharedMemory};
use ring_abi::types::PAGE_SIZE;
use ring_abi::{console_io, sched, vcpu, version};

use crate::account::Account;
use crate::mem::{Pages, host::va_of_maddr};

pub use machine::Machine;

pub use crate::account::{charged_allocations, overdraw_at};
pub use crate::mem::host_heap::Heap;

/// Answers hypercalls.
pub trait Hypervisor {
    /// Answers hypercall `number` with the value of rax: zero or more, or a negative errno. Addresses among the
    /// arguments are this process's own and valid for the call.
    fn hypercall(&mut self, number: u32, args: [u64; 5]) -> i64;
}

std::thread_local! {
    // The value is never dropped: what a test leaves behind may still make hypercalls while the thread ends.
    static HYPERVISOR: ManuallyDrop<RefCell<Box<dyn Hypervisor>>> =
        ManuallyDrop::new(RefCell::new(Box::new(Loopback::default())));
    static HELD: core::cell::Cell<Option<u16>> = const { core::cell::Cell::new(None) };
    static CONSOLE_BUSY: core::cell::Cell<bool> = const { core::cell::Cell::new(false) };
    static PORT_WRITES: RefCell<VecDeque<(u16, u8)>> = const { RefCell::new(VecDeque::new()) };
    static CONSOLE: RefCell<(Vec<u8>, VecDeque<u8>)> = const { RefCell::new((Vec::new(), VecDeque::new())) };
}

/// Replaces the thread's stand-in.
pub fn install(hypervisor: Box<dyn Hypervisor>) {
    HYPERVISOR.with(|slot| *slot.borrow_mut() = hypervisor);
}

/// Sets how many bytes the thread's kernel has for accounts, the reserve included. At first the kernel has as much as
/// accounts ask for.
pub fn set_memory(bytes: usize) {
    crate::mem::host::set_memory(bytes);
}

/// Makes `dom` a dead domain whose pages others still map, which the hypervisor still reports; with `None` there is
/// no such domain.
pub fn hold_dead_domain(dom: Option<u16>) {
    HELD.with(|held| held.set(dom));
}

/// Sends an event to `port`, as the hypervisor would.
pub fn deliver_event(port: u32) {
    crate::event::deliver(port as usize);
}

/// The bytes that were written to the console since the last call.
pub fn take_console_output() -> Vec<u8> {
    CONSOLE.with(|console| core::mem::take(&mut console.borrow_mut().0))
}

/// How many writes to ports are remembered.
const PORT_WRITES_KEPT: usize = 4096;

pub(crate) fn note_port_write(port: u16, value: u8) {
    PORT_WRITES.with(|writes| {
        let mut writes = writes.borrow_mut();
        if writes.len() == PORT_WRITES_KEPT {
            writes.pop_front();
        }
        writes.push_back((port, value));
    });
}

/// The bytes that were written to `port` since the last call, of the last few thousand for all ports.
pub fn take_port_writes(port: u16) -> Vec<u8> {
    let writes = PORT_WRITES.with(|writes| core::mem::take(&mut *writes.borrow_mut()));
    writes.into_iter().filter(|write| write.0 == port).map(|write| write.1).collect()
}

/// Lets the console's line be busy, or not.
pub fn set_console_busy(busy: bool) {
    CONSOLE_BUSY.set(busy);
}

/// Types bytes at the console.
pub fn type_input(bytes: &[u8]) {
    CONSOLE.with(|console| console.borrow_mut().1.extend(bytes));
}

pub(crate) fn hypercall(number: u32, args: [u64; 5]) -> i64 {
    // What the stand-in hypervisor keeps must not be charged to a domain's account.
    Account::own().charge(|| HYPERVISOR.with(|slot| slot.borrow_mut().hypercall(number, args)))
}

/// Most frames that the grant table of a [`Loopback`] domain can have.
pub const GRANT_FRAMES: usize = 8;

/// One domain that is its own peer. Event channels and grants follow the rules, time and scheduling do nothing, and the
/// console is in memory. Every other hypercall is `ENOSYS`.
#[derive(Default)]
pub struct Loopback {
    ports: BTreeMap<u32, End>,
    grants: Option<Pages>,
    /// By handle: the entry's number, and whether the mapping may be written.
    mappings: BTreeMap<u32, (u32, bool)>,
    next_handle: u32,
}

/// The state of a port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Unbound,
    Peer(u32),
    Virq(u32),
    Own,
}

/// Reads and writes a structure argument.
fn with_arg<T>(address: u64, change: impl FnOnce(&mut T) -> Result<u64, Errno>) -> Result<u64, Errno> {
    // SAFETY: the typed hypercalls pass the address of a live structure of this type, borrowed for the call.
    let arg = unsafe { (address as *mut T).as_mut() }.ok_or(Errno::EFAULT)?;
    change(arg)
}

/// Goes through an array argument.
fn with_list<T>(address: u64, count: u64, mut change: impl FnMut(&mut T)) -> Result<u64, Errno> {
    for index in 0..count {
        // SAFETY: the typed hypercalls pass a live array of `count` structures, borrowed for the call.
        change(unsafe { &mut *(address as *mut T).add(index as usize) });
    }
    Ok(0)
}

impl Hypervisor for Loopback {
    fn hypercall(&mut self, number: u32, args: [u64; 5]) -> i64 {
        let result = match number {
            __HYPERVISOR_EVENT_CHANNEL_OP => self.event(args[0] as u32, args[1]),
            __HYPERVISOR_GRANT_TABLE_OP => self.grant(args[0] as u32, args[1], args[2]),
            __HYPERVISOR_DOMCTL => domctl(args[0]),
            __HYPERVISOR_CONSOLE_IO => console(args),
            __HYPERVISOR_XEN_VERSION if args[0] as u32 == version::XENVER_VERSION => Ok(0x0004_0011),
            __HYPERVISOR_VCPU_OP if args[0] as u32 == vcpu::VCPUOP_IS_UP => {
                if args[1] == 0 {
                    Ok(1)
                } else {
                    Err(Errno::ENOENT)
                }
            }
            __HYPERVISOR_VCPU_OP => Ok(0),
            __HYPERVISOR_SCHED_OP if args[0] as u32 != sched::SCHEDOP_REMOTE_SHUTDOWN => Ok(0),
            _ => Err(Errno::ENOSYS),
        };
        match result {
            Ok(value) => value as i64,
            Err(errno) => errno.negated(),
        }
    }
}

fn domctl(arg: u64) -> Result<u64, Errno> {
    with_arg(arg, |op: &mut XenDomctl| match HELD.with(|held| held.get()) {
        Some(held) if (op.cmd, op.domain) == (XEN_DOMCTL_GETDOMAININFO, held) => {
            let flags = XEN_DOMINF_DYING;
            op.set_payload(&XenDomctlGetdomaininfo { domain: held, flags, ..Default::default() });
            Ok(0)
        }
        _ => Err(Errno::ENOSYS),
    })
}

fn console(args: [u64; 5]) -> Result<u64, Errno> {
    CONSOLE.with(|console| {
        let (output, input) = &mut *console.borrow_mut();
        let mut count = 0;
        match args[0] as u32 {
            console_io::CONSOLEIO_WRITE if args[1] == 0 => {
                let asks = args[2] == console_io::ASKS_WHETHER_BUSY;
                if asks && CONSOLE_BUSY.get() { Err(Errno::EAGAIN) } else { Ok(0) }
            }
            console_io::CONSOLEIO_WRITE => with_list(args[2], args[1], |byte: &mut u8| output.push(*byte)),
            console_io::CONSOLEIO_READ => {
                let ready = args[1].min(input.len() as u64);
                with_list(args[2], ready, |byte: &mut u8| {
                    *byte = input.pop_front().unwrap_or(0);
                    count += 1;
                })?;
                Ok(count)
            }
            _ => Err(Errno::ENOSYS),
        }
    })
}

impl Loopback {
    fn open(&mut self, end: End) -> u32 {
        let port = (1..).find(|port| !self.ports.contains_key(port)).unwrap_or(0);
        self.ports.insert(port, end);
        port
    }

    fn event(&mut self, cmd: u32, arg: u64) -> Result<u64, Errno> {
        match cmd {
            EVTCHNOP_ALLOC_UNBOUND => with_arg(arg, |op: &mut EvtchnAllocUnbound| {
                op.port = self.open(End::Unbound);
                Ok(0)
            }),
            EVTCHNOP_BIND_INTERDOMAIN => with_arg(arg, |op: &mut EvtchnBindInterdomain| {
                if self.ports.get(&op.remote_port) != Some(&End::Unbound) {
                    return Err(Errno::EINVAL);
                }
                op.local_port = self.open(End::Peer(op.remote_port));
                self.ports.insert(op.remote_port, End::Peer(op.local_port));
                deliver_event(op.local_port);
                Ok(0)
            }),
            EVTCHNOP_BIND_VIRQ => with_arg(arg, |op: &mut EvtchnBindVirq| {
                if self.ports.values().any(|end| *end == End::Virq(op.virq)) {
                    return Err(Errno::EEXIST);
                }
                op.port = self.open(End::Virq(op.virq));
                Ok(0)
            }),
            EVTCHNOP_BIND_PIRQ => with_arg(arg, |op: &mut EvtchnBindPirq| {
                op.port = self.open(End::Own);
                Ok(0)
            }),
            EVTCHNOP_BIND_IPI => with_arg(arg, |op: &mut EvtchnBindIpi| {
                op.port = self.open(End::Own);
                Ok(0)
            }),
            EVTCHNOP_CLOSE => with_arg(arg, |op: &mut EvtchnClose| {
                if let End::Peer(other) = self.ports.remove(&op.port).ok_or(Errno::EINVAL)? {
                    self.ports.insert(other, End::Unbound);
                }
                Ok(0)
            }),
            EVTCHNOP_SEND => with_arg(arg, |op: &mut EvtchnSend| match self.ports.get(&op.port) {
                Some(End::Peer(other)) => {
                    deliver_event(*other);
                    Ok(0)
                }
                Some(End::Own) => {
                    deliver_event(op.port);
                    Ok(0)
                }
                Some(End::Unbound) => Ok(0),
                _ => Err(Errno::EINVAL),
            }),
            EVTCHNOP_UNMASK => Ok(0),
            _ => Err(Errno::ENOSYS),
        }
    }

    fn table(&mut self) -> &Pages {
        self.grants.get_or_insert_with(|| Pages::zeroed(GRANT_FRAMES).expect("the host has memory"))
    }

    fn grant(&mut self, cmd: u32, arg: u64, count: u64) -> Result<u64, Errno> {
        match cmd {
            GNTTABOP_QUERY_SIZE => with_list(arg, count, |op: &mut GnttabQuerySize| {
                op.nr_frames = 1;
                op.max_nr_frames = GRANT_FRAMES as u32;
                op.status = GNTST_OKAY;
            }),
            GNTTABOP_SETUP_TABLE => with_list(arg, count, |op: &mut GnttabSetupTable| {
                op.status = GNTST_GENERAL_ERROR;
                if op.nr_frames as usize <= GRANT_FRAMES {
                    let mut frame = 0;
                    let table = self.table();
                    let _ = with_list(op.frame_list, u64::from(op.nr_frames), |mfn: &mut u64| {
                        *mfn = table.mfn(frame).raw();
                        frame += 1;
                    });
                    op.status = GNTST_OKAY;
                }
            }),
            GNTTABOP_MAP_GRANT_REF => with_list(arg, count, |op: &mut GnttabMapGrantRef| {
                let writable = op.flags & GNTMAP_READONLY == 0;
                op.status = match self.take_access(op.r#ref, writable) {
                    Ok(maddr) => {
                        op.dev_bus_addr = maddr;
                        op.handle = self.next_handle;
                        self.next_handle += 1;
                        self.mappings.insert(op.handle, (op.r#ref, writable));
                        GNTST_OKAY
                    }
                    Err(status) => status,
                };
            }),
            GNTTABOP_UNMAP_GRANT_REF => with_list(arg, count, |op: &mut GnttabUnmapGrantRef| {
                op.status = match self.mappings.remove(&op.handle) {
                    Some((entry, _)) => {
                        self.drop_access(entry);
                        GNTST_OKAY
                    }
                    None => GNTST_BAD_HANDLE,
                };
            }),
            GNTTABOP_COPY => with_list(arg, count, |op: &mut GnttabCopy| {
                op.status = self.copy(op).err().unwrap_or(GNTST_OKAY);
            }),
            GNTTABOP_SET_VERSION => Ok(0),
            _ => Err(Errno::ENOSYS),
        }
    }

    /// Uses a grant: marks the entry and gives the frame's address.
    fn take_access(&mut self, entry: u32, writable: bool) -> Result<u64, i16> {
        let at = entry as usize * 8;
        let table = self.table().shared();
        if at + 8 > table.len() {
            return Err(GNTST_BAD_GNTREF);
        }
        let flags = table.load_u16(at);
        if flags & GTF_TYPE_MASK != GTF_PERMIT_ACCESS {
            return Err(GNTST_BAD_GNTREF);
        }
        if writable && flags & GTF_READONLY != 0 {
            return Err(GNTST_GENERAL_ERROR);
        }
        table.or_u16(at, GTF_READING | if writable { GTF_WRITING } else { 0 });
        Ok(u64::from(table.load_u32(at + 4)) * PAGE_SIZE as u64)
    }

    /// Gives a use back: the marks go with the last.
    fn drop_access(&mut self, entry: u32) {
        let reading = self.mappings.values().any(|(other, _)| *other == entry);
        let writing = self.mappings.values().any(|(other, writable)| *other == entry && *writable);
        let keep = if reading { GTF_READING } else { 0 } | if writing { GTF_WRITING } else { 0 };
        self.table().shared().and_u16(entry as usize * 8, !(GTF_READING | GTF_WRITING) | keep);
    }

    fn copy(&mut self, op: &GnttabCopy) -> Result<(), i16> {
        let len = usize::from(op.len);
        let mut bytes = alloc::vec![0; len];
        self.copy_end(&op.source, op.flags & GNTCOPY_SOURCE_GREF != 0, false, len)?.read(0, &mut bytes);
        self.copy_end(&op.dest, op.flags & GNTCOPY_DEST_GREF != 0, true, len)?.write(0, &bytes);
        Ok(())
    }

    /// The memory of one side of a copy.
    fn copy_end(
        &mut self,
        end: &GnttabCopyPtr,
        by_ref: bool,
        write: bool,
        len: usize,
    ) -> Result<SharedBytes<'_>, i16> {
        let offset = usize::from(end.offset);
        if offset + len > PAGE_SIZE {
            return Err(GNTST_BAD_COPY_ARG);
        }
        let maddr = if by_ref {
            let maddr = self.take_access(end.u as u32, write)?;
            self.drop_access(end.u as u32);
            maddr
        } else {
            end.u * PAGE_SIZE as u64
        };
        let va = va_of_maddr(maddr).ok_or(GNTST_BAD_PAGE)?;
        // SAFETY: this is a live page of this thread's kernel, which only accessors of this kind reach while the copy
        // lasts.
        Ok(unsafe { SharedBytes::new((va + offset) as *mut u8, len) })
    }
}
