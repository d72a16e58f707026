//! `xl`: the sub-commands for network interfaces of running domains.

use alloc::format;
use alloc::string::{String, ToString};

use pvrt::executor::{spawn_join, yield_now};
use pvrt::println;

use super::Line;
use crate::commands::{Outcome, Shell};
use crate::config::VifConfig;
use crate::shell::print::{Printer, shown};
use crate::toolstack::AttachedVif;

impl Shell {
    /// `xl network-attach DOMAIN [KEY=VALUE...]`: the words are one interface, as in `vif=[...]`.
    pub(super) async fn xl_network_attach(&self, line: &Line<'_>) -> Outcome {
        let [name, words @ ..] = &line.operands[..] else { return Err(line.command.usage()) };
        let domain = self.toolstack.find(name)?;
        let (vif, notes) = VifConfig::parse_strictly(&words.join(","))?;
        for note in notes {
            println!("warning: vif: {}", shown(&note));
        }
        if line.dry_run {
            return super::json::print(&super::json::vif(&vif)).await;
        }
        let toolstack = self.toolstack.clone();
        let attached = spawn_join(async move { toolstack.attach_vif(&domain, vif).await }).await;
        attached.map_err(|_| "xl network-attach: given up")?.map_err(|error| error.to_string())
    }

    /// `xl network-detach DOMAIN DEVICE|MAC`.
    pub(super) async fn xl_network_detach(&self, line: &Line<'_>) -> Outcome {
        let (name, device) = line.two()?;
        let domain = self.toolstack.find(name)?;
        let devid = self.toolstack.vif_number(&domain, device)?;
        let toolstack = self.toolstack.clone();
        let detached = spawn_join(async move { toolstack.detach_vif(&domain, devid).await }).await;
        detached.map_err(|_| "xl network-detach: given up")?.map_err(|error| error.to_string())
    }

    /// `xl network-list DOMAIN...`.
    pub(super) async fn xl_network_list(&self, list: &Line<'_>) -> Outcome {
        let mut printer = Printer::default();
        printer.line(HEADER).await;
        for name in &list.operands {
            yield_now().await;
            for vif in self.toolstack.attached_vifs(&self.toolstack.find(name)?) {
                printer.line(&line(&vif)).await;
            }
        }
        printer.end().await;
        Ok(())
    }
}

const HEADER: &str = "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path";

/// The columns of [`HEADER`]; -1 stands for what there is not. Xen's `xl` has no blank behind the address either.
fn line(vif: &AttachedVif) -> String {
    let known = |number: Option<u32>| number.map_or(-1, i64::from);
    format!(
        "{:<3} {:<2} {}{:>6} {:>5} {:>6} {:>5}/{:<11} {}",
        vif.devid,
        vif.backend_id,
        vif.mac,
        vif.devid,
        known(vif.state),
        known(vif.port),
        known(vif.tx_ring),
        known(vif.rx_ring),
        vif.backend,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::tests::failure;

    #[test]
    fn columns_stand_below_their_heads() {
        let vif = AttachedVif {
            devid: 1,
            backend_id: 0,
            mac: "00:16:3e:0a:0b:0c".to_string(),
            state: Some(4),
            port: Some(17),
            tx_ring: Some(768),
            rx_ring: None,
            backend: "/local/domain/0/backend/vif/7/1".to_string(),
        };
        let line = line(&vif);
        assert_eq!(
            line,
            "1   0  00:16:3e:0a:0b:0c     1     4     17   768/-1          /local/domain/0/backend/vif/7/1"
        );
        // One column to the left from the address on, as with Xen's.
        assert_eq!(HEADER.find("BE-path"), line.find("/local").map(|at| at + 1));
        assert_eq!(HEADER.find("/rx-ring"), line.find("/-1").map(|at| at + 1));
    }

    #[test]
    fn lines_that_name_nothing_say_what() {
        for (line, want) in [
            ("xl network-attach", "usage: xl network-attach DOMAIN [KEY=VALUE...]"),
            ("xl network-attach absent", "absent: no such domain"),
            ("xl network-detach absent 0", "absent: no such domain"),
            ("xl network-detach absent", "usage: xl network-detach DOMAIN DEVICE|MAC"),
            ("xl network-list absent", "absent: no such domain"),
        ] {
            assert_eq!(failure(line), want, "{line}");
        }
    }
}
