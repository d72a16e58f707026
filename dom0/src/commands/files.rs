//! `ls` and `cat`.

use alloc::format;

use pvrt::{console, println};

use super::{Outcome, Shell};
use crate::bundle::{File, ROOT};

impl Shell {
    /// The file at `path`.
    ///
    /// # Errors
    /// There is none.
    pub fn file(&self, path: &str) -> Result<File, alloc::string::String> {
        self.bundle.find(path).ok_or_else(|| format!("{path}: no such file"))
    }

    pub(super) fn ls(&self, arguments: &[&str]) -> Outcome {
        let path = match arguments {
            [] => ROOT,
            [path] => path.trim_end_matches('/'),
            _ => return Err("usage: ls [PATH]".into()),
        };
        match path {
            "" => println!("boot\ndev"),
            ROOT => {
                for file in self.bundle.files() {
                    println!("{:>12} {}", file.bytes.len(), file.name);
                }
            }
            "/dev" => {
                for disk in self.disks.list() {
                    let geometry = disk.device.geometry();
                    let access = if geometry.read_only { "r" } else { "w" };
                    let serial = disk.serial.as_deref().unwrap_or("-");
                    println!("{:>12} {access} {} {serial}", geometry.sectors * 512, disk.name);
                }
            }
            _ => {
                let file = self.file(path)?;
                println!("{:>12} {}", file.bytes.len(), file.name);
            }
        }
        Ok(())
    }

    pub(super) fn cat(&self, arguments: &[&str]) -> Outcome {
        if arguments.is_empty() {
            return Err("usage: cat FILE...".into());
        }
        for path in arguments {
            let file = self.file(path)?;
            for piece in file.bytes.chunks(1024) {
                console::write(piece);
            }
            if !file.bytes.is_empty() && file.bytes.last() != Some(&b'\n') {
                println!();
            }
        }
        Ok(())
    }
}
