//! `ls` and `cat`.

use alloc::format;

use pvrt::println;

use super::{Outcome, Shell};
use crate::bundle::{File, ROOT};
use crate::shell::print::{self, Printer};

impl Shell {
    /// The file at `path`.
    ///
    /// # Errors
    /// There is none.
    pub fn file(&self, path: &str) -> Result<File, alloc::string::String> {
        self.bundle.find(path).ok_or_else(|| format!("{path}: no such file"))
    }

    pub(super) async fn ls(&self, arguments: &[&str]) -> Outcome {
        let path = match arguments {
            [] => ROOT,
            [path] => path.trim_end_matches('/'),
            _ => return Err("usage: ls [PATH]".into()),
        };
        let mut printer = Printer::default();
        match path {
            "" => {
                printer.line("boot").await;
                printer.line("dev").await;
            }
            ROOT => {
                for file in self.bundle.files() {
                    printer.line(&format!("{:>12} {}", file.bytes.len(), file.name)).await;
                }
            }
            "/dev" => {
                for disk in self.disks.list() {
                    let geometry = disk.device.geometry();
                    let access = if geometry.read_only { "r" } else { "w" };
                    let id = disk.id.as_deref().unwrap_or("-");
                    let bytes = geometry.sectors * 512;
                    printer.line(&format!("{bytes:>12} {access} {} {id}", disk.name)).await;
                }
            }
            _ => {
                let file = self.file(path)?;
                printer.line(&format!("{:>12} {}", file.bytes.len(), file.name)).await;
            }
        }
        printer.end().await;
        Ok(())
    }

    pub(super) async fn cat(&self, arguments: &[&str]) -> Outcome {
        if arguments.is_empty() {
            return Err("usage: cat FILE...".into());
        }
        for path in arguments {
            let file = self.file(path)?;
            print::bytes(file.bytes).await;
            if !file.bytes.is_empty() && file.bytes.last() != Some(&b'\n') {
                println!();
            }
        }
        Ok(())
    }
}
