//! Our own frontends, as those that a case tries.

use std::sync::Arc;

use conformance::blkfront::{BlockFrontend, FrontError, Frontends, Later, Sum, content};
use conformance::consolefront::ConsoleFrontend;
use conformance::netfront::{NetFrontend, Offload};
use frontends::blkfront::{BlockError, Disk};
use frontends::console::Console;
use frontends::netfront::{self, Checksum, Gso, GsoKind, Interface, NetError};
use frontends::xenbus::Xenstore;
use pvrt::event::Port;
use pvrt::executor::sync;
use pvrt::mem::Pages;
use ring_abi::shared::SharedBytes;
use ring_abi::types::PAGE_SIZE;
use spin::Mutex;

/// The frontends of a domain with this xenstore connection.
pub(crate) struct Ours(pub(crate) Xenstore);

/// A console; one operation at a time.
struct Terminal(sync::Mutex<Console<SharedBytes<'static>>>);

/// A connected disk, until it is closed.
struct Connected(Mutex<Option<Arc<Disk>>>);

/// A connected interface, until it is closed.
struct Linked(Mutex<Option<Arc<Interface>>>);

fn told_net(error: NetError) -> FrontError {
    match error {
        NetError::BadPacket | NetError::Full => FrontError::Refused,
        NetError::Unsupported(_) => FrontError::Unsupported,
        NetError::Disconnected | NetError::Resources(_) | NetError::Store(_) => FrontError::Gone,
    }
}

fn told(error: BlockError) -> FrontError {
    match error {
        BlockError::Io => FrontError::Failed,
        BlockError::Unsupported => FrontError::Unsupported,
        BlockError::BadRange | BlockError::ReadOnly => FrontError::Refused,
        BlockError::Disconnected | BlockError::Resources(_) | BlockError::Store(_) => FrontError::Gone,
    }
}

impl Frontends for Ours {
    fn connect(&self, path: &str) -> Later<Arc<dyn BlockFrontend>> {
        let (store, path) = (self.0.clone(), path.to_string());
        Box::pin(async move {
            let disk = Disk::connect(&store, &path).await.map_err(told)?;
            Ok(Arc::new(Connected(Mutex::new(Some(Arc::new(disk))))) as Arc<dyn BlockFrontend>)
        })
    }

    fn network(&self, path: &str) -> Later<Arc<dyn NetFrontend>> {
        let (store, path) = (self.0.clone(), path.to_string());
        Box::pin(async move {
            let interface = Interface::connect(&store, &path).await.map_err(told_net)?;
            Ok(Arc::new(Linked(Mutex::new(Some(Arc::new(interface))))) as Arc<dyn NetFrontend>)
        })
    }

    fn console(
        &self,
        page: SharedBytes<'static>,
        port: Port,
    ) -> Result<Arc<dyn ConsoleFrontend>, FrontError> {
        let console = Console::new(page, port).map_err(|_| FrontError::Gone)?;
        Ok(Arc::new(Terminal(sync::Mutex::new(console))))
    }
}

impl ConsoleFrontend for Terminal {
    fn write(self: Arc<Self>, bytes: Vec<u8>) -> Later<()> {
        Box::pin(async move { self.0.lock().await.write(&bytes).await.map_err(|_| FrontError::Gone) })
    }

    fn read(self: Arc<Self>, most: usize) -> Later<Vec<u8>> {
        Box::pin(async move {
            let mut buffer = vec![0; most];
            let count = self.0.lock().await.read(&mut buffer).await.map_err(|_| FrontError::Gone)?;
            buffer.truncate(count);
            Ok(buffer)
        })
    }
}

impl Connected {
    fn disk(&self) -> Result<Arc<Disk>, FrontError> {
        self.0.lock().clone().ok_or(FrontError::Gone)
    }
}

fn pages(bytes: usize) -> Arc<Pages> {
    Arc::new(Pages::zeroed(bytes.div_ceil(PAGE_SIZE)).expect("the host has memory"))
}

impl BlockFrontend for Connected {
    fn read(self: Arc<Self>, sector: u64, sectors: usize) -> Later<Sum> {
        Box::pin(async move {
            let buffer = pages(sectors * 512);
            self.disk()?.read(sector, &buffer, sectors).await.map_err(told)?;
            let mut data = vec![0; sectors * 512];
            buffer.bytes().read(0, &mut data);
            Ok(Sum::of(&data))
        })
    }

    fn write(self: Arc<Self>, sector: u64, sectors: usize, seed: u8) -> Later<()> {
        Box::pin(async move {
            let data = content(seed, sectors);
            let buffer = pages(data.len());
            buffer.bytes().write(0, &data);
            self.disk()?.write(sector, &buffer, sectors).await.map_err(told)
        })
    }

    fn flush(self: Arc<Self>) -> Later<()> {
        Box::pin(async move { self.disk()?.flush().await.map_err(told) })
    }

    fn discard(self: Arc<Self>, sector: u64, sectors: u64) -> Later<()> {
        Box::pin(async move { self.disk()?.discard(sector, sectors).await.map_err(told) })
    }

    fn close(self: Arc<Self>) -> Later<()> {
        Box::pin(async move {
            let mut disk = self.0.lock().take().ok_or(FrontError::Gone)?;
            // What is in flight holds the disk, too.
            let disk = loop {
                match Arc::try_unwrap(disk) {
                    Ok(disk) => break disk,
                    Err(shared) => disk = shared,
                }
                pvrt::time::sleep(1_000_000).await;
            };
            disk.close().await.map_err(told)
        })
    }
}

impl Linked {
    fn interface(&self) -> Result<Arc<Interface>, FrontError> {
        self.0.lock().clone().ok_or(FrontError::Gone)
    }
}

/// A frame's offloads as the interface has them; `None`: it has no such.
fn offload(offload: Offload) -> Option<netfront::Offload> {
    let checksum = match (offload.blank, offload.validated) {
        (true, _) => Checksum::Partial,
        (false, true) => Checksum::Verified,
        (false, false) => Checksum::Complete,
    };
    let gso = match offload.gso {
        None => None,
        Some((1, size)) => Some(Gso { kind: GsoKind::TcpV4, size }),
        Some((2, size)) => Some(Gso { kind: GsoKind::TcpV6, size }),
        Some(_) => return None,
    };
    Some(netfront::Offload { checksum, gso, hash: None })
}

impl NetFrontend for Linked {
    fn send(self: Arc<Self>, frame: Vec<u8>, wanted: Offload) -> Later<()> {
        Box::pin(async move {
            let wanted = offload(wanted).ok_or(FrontError::Refused)?;
            loop {
                let interface = self.interface()?;
                match interface.send(&frame, wanted) {
                    // Another task may wait by `ready`, of which there is one at a time.
                    Err(NetError::Full) => pvrt::time::sleep(500_000).await,
                    result => {
                        result.map_err(told_net)?;
                        return interface.flush().map_err(told_net);
                    }
                }
            }
        })
    }

    fn receive(self: Arc<Self>) -> Later<(Vec<u8>, Offload)> {
        Box::pin(async move {
            let interface = self.interface()?;
            let mut frame = Vec::new();
            loop {
                if let Some(netfront::Offload { checksum, gso, .. }) =
                    interface.receive(&mut frame).map_err(told_net)?
                {
                    interface.flush().map_err(told_net)?;
                    let (blank, validated) = (checksum == Checksum::Partial, checksum == Checksum::Verified);
                    let gso = gso.map(|gso| (if gso.kind == GsoKind::TcpV4 { 1 } else { 2 }, gso.size));
                    return Ok((frame, Offload { blank, validated, gso }));
                }
                interface.ready().await;
            }
        })
    }

    fn close(self: Arc<Self>) -> Later<()> {
        Box::pin(async move {
            let interface = self.0.lock().take().ok_or(FrontError::Gone)?;
            // What waits for a frame holds the interface, too.
            let interface = Arc::try_unwrap(interface).map_err(|_| FrontError::Failed)?;
            interface.close().await.map_err(told_net)
        })
    }
}
