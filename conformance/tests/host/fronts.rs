//! Our own frontends, as those that a case tries.

use std::sync::Arc;

use conformance::blkfront::{BlockFrontend, FrontError, Frontends, Later, Sum, content};
use conformance::consolefront::ConsoleFrontend;
use frontends::blkfront::{BlockError, Disk};
use frontends::console::Console;
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
