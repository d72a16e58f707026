//! An attached reader of a console, which reads output as it comes, and types.

use alloc::sync::Arc;

use pvrt::executor::sync::Notify;

use super::{Console, Reader};

/// The most bytes that an attached reader gets at once.
const READ_BYTES: usize = 1024;

/// What a reader finds when it looks for output.
enum Look {
    More,
    Nothing,
    /// The reader has read all, and no more will come.
    Over,
}

/// A reader of a console, who may type; detached on drop.
pub struct Attachment {
    console: Arc<Console>,
    number: u32,
    wake: Arc<Notify>,
    /// The last read did not wait, so the next one yields first.
    in_a_row: bool,
}

impl Attachment {
    pub(in crate::consoled) fn new(console: Arc<Console>, history: bool) -> Self {
        let wake = Arc::new(Notify::new());
        let mut guard = console.state.lock();
        let state = &mut *guard;
        let number = state.next_reader;
        state.next_reader += 1;
        // A line that has begun is printed now; the reader will get its end.
        console.flush(&state.prefix, &mut state.lines);
        let position = if history { state.scrollback().start() } else { state.scrollback().end() };
        state.readers.insert(number, Reader { wake: wake.clone(), position });
        drop(guard);
        Self { console, number, wake, in_a_row: false }
    }

    /// Waits for output, and until the output may be printed, and copies it into `buffer`. Returns the number of
    /// bytes, 0 when the console has ended and all was read.
    pub async fn read(&mut self, buffer: &mut [u8]) -> usize {
        let most = buffer.len().min(READ_BYTES);
        loop {
            match self.look() {
                Look::More if core::mem::take(&mut self.in_a_row) => pvrt::yield_now().await,
                Look::More => break,
                Look::Over => return 0,
                Look::Nothing => {
                    self.in_a_row = false;
                    self.wake.notified().await;
                }
            }
        }
        let turn = self.console.share.turn(most as u64).await;
        let count = self.take(&mut buffer[..most]);
        turn.spend(count as u64);
        self.in_a_row = true;
        count
    }

    /// Whether there is output that this reader has not read.
    pub fn has_more(&self) -> bool {
        matches!(self.look(), Look::More)
    }

    fn look(&self) -> Look {
        let state = self.console.state.lock();
        let position = state.readers.get(&self.number).map_or(u64::MAX, |reader| reader.position);
        if position < state.scrollback().end() {
            Look::More
        } else if state.live.is_none() {
            Look::Over
        } else {
            Look::Nothing
        }
    }

    fn take(&self, buffer: &mut [u8]) -> usize {
        let mut state = self.console.state.lock();
        let position = state.readers.get(&self.number).map_or(u64::MAX, |reader| reader.position);
        let (count, position) = state.scrollback().read(position, buffer);
        if let Some(reader) = state.readers.get_mut(&self.number) {
            reader.position = position;
        }
        if core::mem::take(&mut state.is_held) {
            self.console.changed.notify_one();
        }
        count
    }

    /// Types `bytes`, and returns how many the ring took, fewer when the domain does not read.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let taken = self.console.state.lock().live.as_mut().map(|live| live.back.input(bytes));
        match taken {
            Some(Ok(taken)) => taken,
            None => 0,
            // The task that serves the ring must be woken: it sleeps until an event, which such a domain may
            // never send.
            Some(Err(error)) => {
                self.console.ruin(error);
                0
            }
        }
    }

    /// Whether the console is over since the domain has ruined its ring.
    pub fn is_ruined(&self) -> bool {
        self.console.state.lock().ruin.is_some()
    }

    /// Whether the console is over: the domain is gone.
    pub fn is_over(&self) -> bool {
        self.console.state.lock().live.is_none()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut state = self.console.state.lock();
        state.readers.remove(&self.number);
        if core::mem::take(&mut state.is_held) {
            self.console.changed.notify_one();
        }
    }
}
