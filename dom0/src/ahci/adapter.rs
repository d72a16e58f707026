//! An adapter's and its ports' life: reset, started, asked what is there, restarted after errors. Every wait has an end.

use alloc::sync::Arc;

use pvrt::executor::time;

use super::AhciError;
use super::port::PortMemory;
use super::registers::*;
use crate::hw::{Dma, DmaSource, Registers};

/// Time between two looks at a register.
const STEP_NS: u64 = 1_000_000;
/// Longest time that an adapter takes to reset, that the firmware takes to let go, and that a port takes to stop.
const RESET_NS: u64 = 1_000_000_000;
const HANDOFF_NS: u64 = 2_000_000_000;
const STOP_NS: u64 = 500_000_000;
/// Longest time until an adapter notices a device, until the link to the device works, and until the device is ready: a
/// disk that spins up takes seconds.
const NOTICE_NS: u64 = 100_000_000;
const LINK_NS: u64 = 1_000_000_000;
const READY_NS: u64 = 10_000_000_000;
/// Longest time of a command of the driver's own.
const COMMAND_NS: u64 = 10_000_000_000;

/// Waits until `done`, at most `ns`; `false`: the time passed.
async fn wait(ns: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = time::now_ns() + ns;
    loop {
        if done() {
            return true;
        }
        if time::now_ns() >= end {
            return false;
        }
        time::sleep(STEP_NS).await;
    }
}

/// What a port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    Disk,
    /// A CD drive or the like.
    Packet,
    /// Something with another signature.
    Other(u32),
}

/// Takes the adapter from the firmware and resets it. The result is what the adapter can do.
///
/// # Errors
/// Nothing answers, the adapter does not reset, or it cannot reach all memory.
pub(super) async fn reset(registers: &dyn Registers) -> Result<u32, AhciError> {
    if registers.read32(CAP) == u32::MAX {
        return Err(AhciError::Gone);
    }
    if registers.read32(CAP2) & CAP2_HANDOFF != 0 {
        registers.write32(BOHC, registers.read32(BOHC) | BOHC_OS_OWNS);
        // A firmware that does not let go has no say any more, so the reset comes anyhow.
        wait(HANDOFF_NS, || registers.read32(BOHC) & BOHC_BIOS_OWNS == 0).await;
    }
    registers.write32(GHC, GHC_AHCI);
    registers.write32(GHC, GHC_AHCI | GHC_RESET);
    if !wait(RESET_NS, || registers.read32(GHC) & GHC_RESET == 0).await {
        return Err(AhciError::ResetTimeout);
    }
    registers.write32(GHC, GHC_AHCI);
    let capabilities = registers.read32(CAP);
    if capabilities == u32::MAX {
        return Err(AhciError::Gone);
    }
    if capabilities & CAP_64_BITS == 0 {
        return Err(AhciError::Unsupported("no way to memory above 4 GiB"));
    }
    Ok(capabilities)
}

/// Stops a port: when this function gives `true`, the port touches no memory.
pub(super) async fn stop(port: &PortRegisters) -> bool {
    port.command(0, CMD_START);
    if !wait(STOP_NS, || port.read(PX_CMD) & CMD_RUNS == 0).await {
        return false;
    }
    port.command(0, CMD_RECEIVE);
    wait(STOP_NS, || port.read(PX_CMD) & CMD_RECEIVES == 0).await
}

/// Stops a port and frees its memory, unless the port does not stop.
pub(super) async fn release<M>(port: &PortRegisters, memory: M) -> bool {
    let stopped = stop(port).await;
    if !stopped {
        core::mem::forget(memory);
    }
    stopped
}

/// Starts a port's link. The result is the time until which the adapter notices a device.
///
/// # Errors
/// [`AhciError::StopTimeout`]: the firmware's use of the port does not end.
pub(super) async fn spin_up(port: &PortRegisters) -> Result<u64, AhciError> {
    port.write(PX_IE, 0);
    if !stop(port).await {
        return Err(AhciError::StopTimeout);
    }
    port.command(CMD_SPIN_UP | CMD_POWER_ON | CMD_ACTIVE, 0);
    Ok(time::now_ns() + NOTICE_NS)
}

/// Looks what is at a port, whose link was started; whatever the adapter does not notice until `deadline` is not there.
/// `None`: nothing is.
///
/// # Errors
/// Memory is missing, or the device does not become ready.
pub(super) async fn attach<M: Dma, S: DmaSource<Memory = M>>(
    port: &PortRegisters,
    deadline: u64,
    source: &S,
) -> Result<Option<(Attached, PortMemory<M>)>, AhciError> {
    let patience = deadline.saturating_sub(time::now_ns());
    if !wait(patience, || port.is_noticed()).await || !wait(LINK_NS, || port.is_connected()).await {
        return Ok(None);
    }
    let memory = PortMemory::new(source).ok_or(AhciError::OutOfMemory)?;
    let [list, frames] = memory.addresses();
    for (register, maddr) in [(PX_CLB, list), (PX_FB, frames)] {
        port.write(register, maddr as u32);
        port.write(register + 4, (maddr >> 32) as u32);
    }
    port.write(PX_SERR, u32::MAX);
    port.write(PX_IS, u32::MAX);
    port.command(CMD_RECEIVE, 0);
    if !wait(READY_NS, || port.read(PX_TFD) & TFD_BUSY == 0).await {
        release(port, memory).await;
        return Err(AhciError::NotReady);
    }
    let attached = match port.read(PX_SIG) {
        SIGNATURE_DISK => Attached::Disk,
        SIGNATURE_ATAPI => Attached::Packet,
        other => Attached::Other(other),
    };
    Ok(Some((attached, memory)))
}

/// Gives the device the question in slot 0, and waits for the end of the answer. The port runs, tells nothing, and has no other
/// command.
///
/// # Errors
/// The device does not answer, or fails the command.
pub(super) async fn ask(port: &PortRegisters) -> Result<(), AhciError> {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    port.write(PX_CI, 1);
    let failed = || port.read(PX_IS) & (IS_TASK_FILE | IS_FATAL) != 0;
    if !wait(COMMAND_NS, || port.read(PX_CI) & 1 == 0 || failed()).await {
        return Err(AhciError::NoAnswer);
    }
    let status = port.read(PX_TFD);
    if failed() || status & TFD_ERROR != 0 {
        return Err(AhciError::Device { status: status as u8, error: (status >> 8) as u8 });
    }
    Ok(())
}

/// Lets the port tell of its commands' ends.
pub(super) fn listen(port: &PortRegisters) {
    port.write(PX_IS, u32::MAX);
    port.write(PX_IE, CAUSES);
}

/// Stops a port after an error and starts it again. The device is reset if it `may_have_commands` still, or is not ready: it would
/// else go on with a queue that the port has given up, into memory that has another use by then. The result tells whether the device
/// was reset: another device may be in its place since.
///
/// # Errors
/// [`AhciError::StopTimeout`]: the port may still use memory. Else the port is stopped, and the device is of no use.
pub(super) async fn restart(port: &PortRegisters, may_have_commands: bool) -> Result<bool, AhciError> {
    port.command(0, CMD_START);
    let stopped = wait(STOP_NS, || port.read(PX_CMD) & CMD_RUNS == 0).await;
    let resets = may_have_commands || !stopped || port.read(PX_TFD) & TFD_BUSY != 0 || !port.is_connected();
    if resets {
        port.write(PX_SCTL, SCTL_AWAKE | SCTL_RESET);
        time::sleep(STEP_NS).await;
        port.write(PX_SCTL, SCTL_AWAKE);
        let linked = wait(LINK_NS, || port.is_connected()).await;
        port.write(PX_SERR, u32::MAX);
        if port.read(PX_CMD) & CMD_RUNS != 0 {
            return Err(AhciError::StopTimeout);
        }
        if !linked {
            return Err(AhciError::Unplugged);
        }
        if !wait(READY_NS, || port.read(PX_TFD) & TFD_BUSY == 0).await {
            return Err(AhciError::NotReady);
        }
    }
    port.write(PX_SERR, u32::MAX);
    port.write(PX_IS, u32::MAX);
    port.command(CMD_START, 0);
    Ok(resets)
}

/// The registers of each port that the adapter has, with the port's number.
pub(super) fn ports(registers: &Arc<dyn Registers>, bytes: u32) -> impl Iterator<Item = (u8, PortRegisters)> {
    let implemented = registers.read32(PI);
    let reachable = ((bytes - LEAST_REGISTER_BYTES) / PORT_BYTES as u32 + 1).min(PORTS.into()) as u8;
    (0..reachable)
        .filter(move |port| implemented >> port & 1 != 0)
        .map(|port| (port, PortRegisters::new(registers, port)))
}
