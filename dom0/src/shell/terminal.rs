//! dom0's terminal, which the line editor, commands that read keys, and lines printed at any time share.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use pvrt::console;
use pvrt::executor::select;
use pvrt::executor::sync::{Channel, Notify};
use spin::Mutex;

use super::editor::{EditorEvent, LineEditor};
use super::print::shown;

/// The shell's prompt.
pub const PROMPT: &str = "dom0# ";
/// Typed bytes that wait for a reader; more are lost.
const TYPED_BYTES: usize = 4096;
const INTERRUPT: u8 = 0x03;

/// Where keys go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The line editor; its line is on the screen.
    Editing,
    /// A command runs: `^C` interrupts it, and other keys are kept for the next line.
    Running,
    /// A command reads all keys, `^C` too.
    Raw,
}

struct Screen {
    editor: LineEditor,
    mode: Mode,
}

/// The terminal. Clones are the same one.
#[derive(Clone)]
pub struct Terminal(Arc<Shared>);

struct Shared {
    /// Held for the time of one output, so that lines stay whole.
    screen: Mutex<Screen>,
    typed: Channel<u8>,
    interrupt: Notify,
}

impl Terminal {
    /// A terminal; [`Terminal::serve`] must run for keys to arrive.
    pub fn new() -> Self {
        let screen = Mutex::new(Screen { editor: LineEditor::new(PROMPT), mode: Mode::Running });
        Self(Arc::new(Shared { screen, typed: Channel::new(TYPED_BYTES), interrupt: Notify::new() }))
    }

    /// Reads keys from the console, for ever.
    pub async fn serve(self) {
        let mut buffer = [0; 128];
        loop {
            let count = console::read(&mut buffer).await;
            for &byte in &buffer[..count] {
                let running = self.0.screen.lock().mode == Mode::Running;
                if running && byte == INTERRUPT {
                    self.0.interrupt.notify_one();
                } else {
                    // The channel is full when 4096 keys were not read; further keys are lost.
                    let _ = self.0.typed.try_send(byte);
                }
            }
        }
    }

    /// Prints a whole line, with its control characters shown, above the line that is being edited if there is one.
    pub fn print_line(&self, text: &str) {
        self.print_lines(&format!("{}", shown(text)));
    }

    /// Prints whole lines at once, as [`Terminal::print_line`] prints one; the last comes without its line end.
    /// Returns the number of bytes printed.
    pub fn print_lines(&self, text: &str) -> usize {
        let mut screen = self.0.screen.lock();
        let editing = screen.mode == Mode::Editing;
        if editing {
            screen.editor.hide();
        }
        let mut output = screen.editor.take_output();
        output.extend_from_slice(text.as_bytes());
        output.push(b'\n');
        if editing {
            screen.editor.show();
            output.append(&mut screen.editor.take_output());
        }
        console::write(&output);
        output.len()
    }

    /// Shows the prompt and edits a line until it is entered. `None`: end of input.
    ///
    /// `candidates` returns the completions of the text before the cursor.
    pub async fn read_line(&self, candidates: impl Fn(&str) -> alloc::vec::Vec<String>) -> Option<String> {
        {
            let mut screen = self.0.screen.lock();
            screen.mode = Mode::Editing;
            screen.editor.show();
            console::write(&screen.editor.take_output());
        }
        loop {
            let byte = self.0.typed.recv().await?;
            let mut screen = self.0.screen.lock();
            let event = screen.editor.feed(byte);
            match &event {
                Some(EditorEvent::Complete) => {
                    let before = screen.editor.before_cursor();
                    screen.editor.complete(&candidates(&before));
                }
                Some(EditorEvent::Interrupt) => screen.editor.show(),
                _ => {}
            }
            let output = screen.editor.take_output();
            console::write(&output);
            match event {
                Some(EditorEvent::Line(line)) => {
                    screen.mode = Mode::Running;
                    return Some(line);
                }
                Some(EditorEvent::EndOfInput) => {
                    screen.mode = Mode::Running;
                    return None;
                }
                _ => {}
            }
        }
    }

    /// Waits for `^C`; only while a command runs.
    pub async fn interrupted(&self) {
        self.0.interrupt.notified().await;
    }

    /// Drops a `^C` that came just after its command had ended, so that it does not interrupt the next.
    pub async fn forget_interrupt(&self) {
        select(self.interrupted(), core::future::ready(())).await;
    }

    /// Does what a `^C` does.
    #[cfg(test)]
    pub(crate) fn interrupt(&self) {
        self.0.interrupt.notify_one();
    }

    /// Does what a key does, for a command that reads all keys.
    #[cfg(test)]
    pub(crate) fn type_key(&self, key: u8) {
        let _ = self.0.typed.try_send(key);
    }

    /// Gives all keys to the caller until the guard is dropped.
    pub fn raw(&self) -> RawKeys {
        let mut screen = self.0.screen.lock();
        let before = screen.mode;
        screen.mode = Mode::Raw;
        RawKeys { terminal: self.clone(), before }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

/// The right to all keys.
pub struct RawKeys {
    terminal: Terminal,
    before: Mode,
}

impl RawKeys {
    /// The next key.
    pub async fn read(&self) -> u8 {
        // The channel is never closed.
        self.terminal.0.typed.recv().await.unwrap_or(0)
    }
}

impl Drop for RawKeys {
    fn drop(&mut self) {
        self.terminal.0.screen.lock().mode = self.before;
    }
}
