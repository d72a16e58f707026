//! `xenstore-ls`, `-read`, `-write`, `-rm`, `-control`, `-watch`.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::{println, yield_now};

use super::{Outcome, Shell};
use crate::shell::print::{self, Printer};
use crate::xenstore::{Client, Nodes, Perms, XsError};

impl Shell {
    pub(super) async fn xenstore_ls(&self, arguments: &[&str]) -> Outcome {
        let (with_perms, paths) = match arguments {
            ["-p", rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let client = self.store.client();
        match paths {
            [] => list(&client, "/", with_perms).await.map_err(|error| about("/", error)),
            paths => {
                for path in paths {
                    let top = if *path == "/" { path } else { path.trim_end_matches('/') };
                    list(&client, top, with_perms).await.map_err(|error| about(path, error))?;
                }
                Ok(())
            }
        }
    }

    pub(super) async fn xenstore_read(&self, arguments: &[&str]) -> Outcome {
        if arguments.is_empty() {
            return Err("usage: xenstore-read PATH...".into());
        }
        let client = self.store.client();
        let mut printer = Printer::default();
        for path in arguments {
            match client.read(path) {
                Ok(value) => printer.line(&format!("{}", value.escape_ascii())).await,
                Err(error) => {
                    printer.end().await;
                    return Err(about(path, error));
                }
            }
        }
        printer.end().await;
        Ok(())
    }

    pub(super) async fn xenstore_write(&self, arguments: &[&str]) -> Outcome {
        if arguments.is_empty() || !arguments.len().is_multiple_of(2) {
            return Err("usage: xenstore-write PATH VALUE ...".into());
        }
        let client = self.store.client();
        for pair in arguments.chunks_exact(2) {
            yield_now().await;
            client.write(pair[0], pair[1]).map_err(|error| about(pair[0], error))?;
        }
        Ok(())
    }

    pub(super) async fn xenstore_rm(&self, arguments: &[&str]) -> Outcome {
        if arguments.is_empty() {
            return Err("usage: xenstore-rm PATH...".into());
        }
        let client = self.store.client();
        for path in arguments {
            yield_now().await;
            client.rm(path).map_err(|error| about(path, error))?;
        }
        Ok(())
    }

    /// `xenstore-control COMMAND ...`: what the daemon answers beside `OK` is shown.
    pub(super) fn xenstore_control(&self, arguments: &[&str]) -> Outcome {
        let [command, ..] = arguments else { return Err("usage: xenstore-control COMMAND ...".into()) };
        // A NUL would part one word into two.
        if arguments.iter().any(|word| word.contains('\0')) {
            return Err("xenstore-control: a word has no NUL".into());
        }
        let reply = self.store.client().control(arguments).map_err(|error| about(command, error))?;
        let text = String::from_utf8_lossy(reply.strip_suffix(b"\0").unwrap_or(&reply)).into_owned();
        if text != "OK" {
            println!("{}", text.trim_end());
        }
        Ok(())
    }

    pub(super) async fn xenstore_watch(&self, arguments: &[&str]) -> Outcome {
        let (count, paths) = match arguments {
            ["-n", count, rest @ ..] => {
                (count.parse().map_err(|_| format!("xenstore-watch: `{count}` is no number"))?, rest)
            }
            rest => (u64::MAX, rest),
        };
        if paths.is_empty() {
            return Err("usage: xenstore-watch [-n COUNT] PATH...".into());
        }
        let client = self.store.client();
        for path in paths {
            yield_now().await;
            client.watch(path, path).map_err(|error| about(path, error))?;
        }
        for _ in 0..count {
            let event = client.next_event().await;
            print::bytes(format!("{}\n", event.path).as_bytes()).await;
        }
        Ok(())
    }
}

fn about(path: &str, error: XsError) -> String {
    format!("{path}: {}", error.name())
}

/// A node that is still to be printed: the path above it, its name, its depth.
type Open = (Arc<str>, String, usize);

/// Prints the nodes below `top`, each indented by its depth. The walk is not recursive, since domains decide how deep
/// the tree is. The walk yields between two nodes.
async fn list(client: &Client, top: &str, with_perms: bool) -> Result<(), XsError> {
    let mut printer = Printer::default();
    let listed = list_with(&mut printer, client, top, with_perms).await;
    printer.end().await;
    listed
}

async fn list_with(
    printer: &mut Printer,
    client: &Client,
    top: &str,
    with_perms: bool,
) -> Result<(), XsError> {
    let mut open = Vec::new();
    below(client, top, 0, &mut open)?;
    while let Some((above, name, depth)) = open.pop() {
        let path = format!("{above}/{name}");
        let value = match client.read(&path) {
            Ok(value) => value,
            // The node was removed meanwhile.
            Err(XsError::NoEnt) => continue,
            Err(error) => return Err(error),
        };
        let perms = match with_perms.then(|| client.perms(&path)).transpose() {
            Ok(perms) => perms.map_or(String::new(), |perms| perms_text(&perms)),
            Err(XsError::NoEnt) => continue,
            Err(error) => return Err(error),
        };
        printer.line(&format!("{:depth$}{name} = \"{}\"{perms}", "", value.escape_ascii())).await;
        match below(client, &path, depth + 1, &mut open) {
            Ok(()) | Err(XsError::NoEnt) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Adds the children of `path` to the nodes still to be printed, in reverse order.
fn below(client: &Client, path: &str, depth: usize, open: &mut Vec<Open>) -> Result<(), XsError> {
    let children = client.directory(path)?;
    let above: Arc<str> = Arc::from(path.trim_end_matches('/'));
    open.extend(children.into_iter().rev().map(|name| (above.clone(), name, depth)));
    Ok(())
}

fn perms_text(perms: &Perms) -> String {
    let entries: Vec<String> = perms.entries().iter().map(|perm| perm.text()).collect();
    format!("  ({})", entries.join(","))
}
