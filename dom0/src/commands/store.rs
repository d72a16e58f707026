//! `xenstore-ls`, `-read`, `-write`, `-rm`, `-watch`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::println;

use super::{Outcome, Shell};
use crate::xenstore::{Client, Nodes, Perms, XsError};

impl Shell {
    pub(super) fn xenstore_ls(&self, arguments: &[&str]) -> Outcome {
        let (with_perms, paths) = match arguments {
            ["-p", rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let client = self.store.client();
        match paths {
            [] => list(&client, "/", with_perms).map_err(|error| about("/", error)),
            paths => paths.iter().try_for_each(|path| {
                let top = if *path == "/" { path } else { path.trim_end_matches('/') };
                list(&client, top, with_perms).map_err(|error| about(path, error))
            }),
        }
    }

    pub(super) fn xenstore_read(&self, arguments: &[&str]) -> Outcome {
        if arguments.is_empty() {
            return Err("usage: xenstore-read PATH...".into());
        }
        let client = self.store.client();
        for path in arguments {
            let value = client.read(path).map_err(|error| about(path, error))?;
            println!("{}", value.escape_ascii());
        }
        Ok(())
    }

    pub(super) fn xenstore_write(&self, arguments: &[&str]) -> Outcome {
        if arguments.is_empty() || !arguments.len().is_multiple_of(2) {
            return Err("usage: xenstore-write PATH VALUE ...".into());
        }
        let client = self.store.client();
        for pair in arguments.chunks_exact(2) {
            client.write(pair[0], pair[1]).map_err(|error| about(pair[0], error))?;
        }
        Ok(())
    }

    pub(super) fn xenstore_rm(&self, arguments: &[&str]) -> Outcome {
        if arguments.is_empty() {
            return Err("usage: xenstore-rm PATH...".into());
        }
        let client = self.store.client();
        arguments.iter().try_for_each(|path| client.rm(path).map_err(|error| about(path, error)))
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
            client.watch(path, path).map_err(|error| about(path, error))?;
        }
        for _ in 0..count {
            let event = client.next_event().await;
            println!("{}", event.path);
        }
        Ok(())
    }
}

fn about(path: &str, error: XsError) -> String {
    format!("{path}: {}", error.name())
}

/// Prints the nodes below `top`, each indented by its depth. Without recursion: how deep they go, the domains say.
fn list(client: &Client, top: &str, with_perms: bool) -> Result<(), XsError> {
    let below = |path: &str, depth: usize, todo: &mut Vec<(String, String, usize)>| {
        let children = client.directory(path)?;
        let path = path.trim_end_matches('/');
        todo.extend(children.into_iter().rev().map(|name| (format!("{path}/{name}"), name, depth)));
        Ok(())
    };
    let mut todo = Vec::new();
    below(top, 0, &mut todo)?;
    while let Some((path, name, depth)) = todo.pop() {
        let value = match client.read(&path) {
            Ok(value) => value,
            // Removed in between.
            Err(XsError::NoEnt) => continue,
            Err(error) => return Err(error),
        };
        let perms = if with_perms { perms_text(&client.perms(&path)?) } else { String::new() };
        println!("{:depth$}{name} = \"{}\"{perms}", "", value.escape_ascii());
        match below(&path, depth + 1, &mut todo) {
            Ok(()) | Err(XsError::NoEnt) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn perms_text(perms: &Perms) -> String {
    let entries: Vec<String> = perms.entries().iter().map(|perm| perm.text()).collect();
    format!("  ({})", entries.join(","))
}
