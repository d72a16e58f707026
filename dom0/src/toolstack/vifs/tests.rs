use pvrt::executor::{block_on_test, spawn, time};

use super::*;
use crate::config::Config;
use crate::toolstack::disks::tests::start;
use crate::xenstore::{Client, Nodes, Xenstore};

/// A backend that finds every bridge, and closes when its frontend has closed or is gone.
async fn serve(store: Xenstore) {
    const ROOT: &str = "/local/domain/0/backend/vif";
    let client = store.client();
    client.watch("/local/domain", "all").unwrap();
    loop {
        for domain in client.directory(ROOT).unwrap_or_default() {
            for device in client.directory(&format!("{ROOT}/{domain}")).unwrap_or_default() {
                let back = format!("{ROOT}/{domain}/{device}");
                let front = format!("/local/domain/{domain}/device/vif/{device}");
                let state = |end: &str| client.read_str(&format!("{end}/state")).unwrap_or_default();
                let next = match (state(&back).as_str(), state(&front).as_str()) {
                    ("1", _) => "2",
                    ("2" | "5", "" | "6") => "6",
                    _ => continue,
                };
                client.write(&format!("{back}/state"), next).unwrap();
            }
        }
        client.next_event().await;
    }
}

fn start_served() -> (Toolstack, Client) {
    let (toolstack, client) = start();
    spawn(serve(toolstack.0.store.clone()));
    spawn(toolstack.0.store.clone().settle());
    (toolstack, client)
}

#[test]
fn a_forward_follows_the_name_of_a_domain() {
    let (toolstack, client) = start();
    let network = toolstack.0.network.clone();
    network.set_up(alloc::vec::Vec::new());
    spawn(crate::netback::run(toolstack.0.store.clone(), network.clone()));
    spawn(toolstack.0.store.clone().settle());
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        network.forward("8080:one:80").unwrap();
        network.forward("8081:new:80").unwrap();
        client.write("/local/domain/1/name", "one").unwrap();
        toolstack.attach_vif(&one, vif("mac=00:16:3e:00:00:01,ip=10.88.0.70")).await.unwrap();
        time::sleep(1_000_000).await;
        assert_eq!(
            network.show_forwards(),
            ["8080 -> one:80 (10.88.0.70)", "8081 -> new:80 (not there)"].map(ToString::to_string)
        );
        toolstack.rename(&one, "new").unwrap();
        // A moment: not until the gateway looks at everything again.
        time::sleep(1_000_000).await;
        assert_eq!(
            network.show_forwards(),
            ["8080 -> one:80 (not there)", "8081 -> new:80 (10.88.0.70)"].map(ToString::to_string)
        );
    });
}

fn vif(text: &str) -> VifConfig {
    VifConfig::parse(text).unwrap().0
}

fn numbers(toolstack: &Toolstack, name: &str) -> Vec<u32> {
    let domain = toolstack.find(name).unwrap();
    let attached: Vec<u32> = toolstack.attached_vifs(&domain).iter().map(|vif| vif.devid).collect();
    let mut configured: Vec<u32> = domain.config.vifs.iter().map(DeviceConfig::devid).collect();
    configured.sort_unstable();
    assert_eq!(attached, configured, "the store and the configuration agree");
    attached
}

#[test]
fn an_interface_comes_and_goes() {
    let (toolstack, client) = start_served();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        toolstack.attach_vif(&one, vif("mac=00:16:3e:00:00:01")).await.unwrap();
        toolstack.attach_vif(&one, vif("devid=5,mac=00:16:3e:00:00:05")).await.unwrap();
        toolstack.attach_vif(&one, vif("bridge=xenbr0")).await.unwrap();
        assert_eq!(numbers(&toolstack, "one"), [0, 1, 5]);
        let taken = Err(DeviceError::Taken(Kind::Vif, "vif 5".into()));
        assert_eq!(toolstack.attach_vif(&one, vif("devid=5")).await, taken);

        let one = toolstack.find("one").unwrap();
        assert_eq!(toolstack.vif_number(&one, "0:16:3E:0:0:5"), Ok(5));
        assert_eq!(toolstack.vif_number(&one, "1"), Ok(1));
        for (text, why) in [("2", "no network interface `2`"), ("x", "number or address")] {
            assert!(toolstack.vif_number(&one, text).unwrap_err().contains(why), "{text}");
        }
        // The interface's frontend has closed, as the toolstack asks frontends to.
        client.write("/local/domain/1/device/vif/5/state", "6").unwrap();
        toolstack.detach_vif(&one, 5).await.unwrap();
        assert_eq!(numbers(&toolstack, "one"), [0, 1]);
        for path in
            ["/local/domain/0/backend/vif/1/5", "/local/domain/1/device/vif/5", "/libxl/1/device/vif/5"]
        {
            assert!(!client.exists(path), "{path}");
        }
    });
}

#[test]
fn one_that_its_domain_does_not_let_go_of_is_taken_away() {
    let (toolstack, client) = start_served();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        toolstack.attach_vif(&one, vif("")).await.unwrap();
        client.write("/local/domain/1/device/vif/0/state", "4").unwrap();
        let begun = time::now_ns();
        toolstack.detach_vif(&one, 0).await.unwrap();
        assert!(time::now_ns() - begun >= 10_000_000_000, "it was asked first");
        assert!(numbers(&toolstack, "one").is_empty());
    });
}

#[test]
fn both_ends_find_the_nodes_of_the_reference_toolstack() {
    let (toolstack, client) = start_served();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        let text = "mac=00:16:3e:00:00:01,ip=10.0.0.9,rate=1MB/s@20ms,script=mine,vifname=web0,mtu=9000,\
                    gatewaydev=eth0,untrusted,vlan=10p/20,rule=in accept tcp port 80,rule=in drop";
        toolstack.attach_vif(&one, vif(text)).await.unwrap();
        let (front, back) = ("/local/domain/1/device/vif/0", "/local/domain/0/backend/vif/1/0");
        for (end, node, value) in [
            (front, "backend", back),
            (front, "backend-id", "0"),
            (front, "state", "1"),
            (front, "handle", "0"),
            (front, "mac", "00:16:3e:00:00:01"),
            (front, "mtu", "9000"),
            (front, "trusted", "0"),
            (back, "frontend", front),
            (back, "frontend-id", "1"),
            (back, "online", "1"),
            (back, "script", "/etc/xen/scripts/mine"),
            (back, "vifname", "web0"),
            (back, "mac", "00:16:3e:00:00:01"),
            (back, "ip", "10.0.0.9"),
            (back, "gatewaydev", "eth0"),
            (back, "rate", "20000,20000"),
            (back, "mtu", "9000"),
            (back, "bridge", "xenbr0"),
            (back, "vlan", "10p/20"),
            (back, "rules", "in accept tcp port 80; in drop"),
            (back, "handle", "0"),
            (back, "type", "vif"),
        ] {
            assert_eq!(client.read_str(&format!("{end}/{node}")).as_deref(), Ok(value), "{end}/{node}");
        }
        let owner = |path: &str| client.perms(path).unwrap().owner();
        assert_eq!((owner(&format!("{front}/mac")), owner(&format!("{front}/mtu"))), (1, 0));
        assert_eq!(owner(&format!("{back}/mac")), 0);
        // What nobody asked for.
        toolstack.attach_vif(&one, vif("")).await.unwrap();
        let mac = client.read_str("/local/domain/1/device/vif/1/mac").unwrap();
        assert!(mac.starts_with("00:16:3e:") && MacAddr::parse(&mac).is_some(), "{mac}");
        assert_eq!(client.read_str("/local/domain/0/backend/vif/1/1/mac").as_ref(), Ok(&mac));
        assert_eq!(client.read_str("/local/domain/1/device/vif/1/mtu").as_deref(), Ok("1500"));
        for node in ["ip", "rate", "mtu", "vifname", "gatewaydev", "vlan", "rules"] {
            assert!(!client.exists(&format!("/local/domain/0/backend/vif/1/1/{node}")), "{node}");
        }
        // The list believes the toolstack's own record.
        client.write("/local/domain/1/device/vif/1/mac", "00:16:3e:7f:ff:ff").unwrap();
        client.write("/local/domain/1/device/vif/1/queue-0/tx-ring-ref", "768").unwrap();
        let listed = &toolstack.attached_vifs(&one)[1];
        assert_eq!(
            (&listed.mac, listed.tx_ring, listed.port, listed.state),
            (&mac, Some(768), None, Some(1))
        );
    });
}

#[test]
fn a_bridge_that_is_not_there_is_named_with_those_that_are() {
    let (toolstack, client) = start_served();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        let error = toolstack.attach_vif(&one, vif("bridge=lan")).await.unwrap_err();
        assert_eq!(error.to_string(), "bridge `lan`: no such bridge (there are xenbr0)");
        for (text, why) in [
            ("bridge=xenbr0.5000", "bridge `xenbr0.5000`: VLAN `5000`: expected a number from 1 to 4094"),
            ("vlan=1-100", "bridge `xenbr0`: a guest can be in 64 VLANs at most"),
            ("bridge=xenbr0.10,vlan=10", "bridge `xenbr0.10`: `vlan=` says the same again"),
        ] {
            assert_eq!(toolstack.attach_vif(&one, vif(text)).await.unwrap_err().to_string(), why);
        }
        assert!(!client.exists("/local/domain/0/backend/vif/1"));
        // What a driver domain has is its own affair.
        toolstack.attach_vif(&one, vif("bridge=lan,backend=two")).await.unwrap();
        assert_eq!(client.read_str("/local/domain/2/backend/vif/1/0/bridge").as_deref(), Ok("lan"));
        let config = domain("vif=['','bridge=lan']");
        let refused = toolstack.create(Arc::new(config)).await.err();
        assert_eq!(refused, Some(CreateError::NoBridge("lan".into(), alloc::vec!["xenbr0".into()])));
        assert!(!toolstack.has_claims());
    });
}

fn domain(line: &str) -> DomainConfig {
    let text = format!("name='new'\nkernel='/boot/k'\nmemory=8\n{line}\n");
    DomainConfig::from_config(&Config::parse("t.cfg", text.as_bytes()).unwrap()).unwrap().0
}

/// As many as a configuration may name, those that are on their way among them.
#[test]
fn a_domain_gets_no_more_interfaces_than_it_may_have() {
    let (toolstack, _) = start_served();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        for _ in 1..MAX_VIFS {
            toolstack.attach_vif(&one, vif("")).await.unwrap();
        }
        let full = DeviceError::Full(Kind::Vif, "one".into(), MAX_VIFS);
        assert_eq!(full.to_string(), "one: the domain has 16 network interfaces, and no more can be");
        let both = pvrt::executor::join_all([(); 2].map(|()| toolstack.attach_vif(&one, vif("")))).await;
        assert_eq!(both, [Ok(()), Err(full)]);
        toolstack.detach_vif(&one, 7).await.unwrap();
        toolstack.attach_vif(&one, vif("")).await.unwrap();
        assert_eq!(numbers(&toolstack, "one").len(), MAX_VIFS);
    });
}

#[test]
fn addresses_are_chosen_once() {
    let (toolstack, _) = start();
    let config = Arc::new(domain("vif=['','mac=00:16:3e:01:02:03','']"));
    let chosen = toolstack.with_addresses(config.clone());
    let macs: Vec<MacAddr> = chosen.vifs.iter().map(|vif| vif.mac.unwrap()).collect();
    assert_eq!(macs[1].0, [0, 0x16, 0x3e, 1, 2, 3]);
    assert!(macs[0] != macs[2] && macs.iter().all(|mac| mac.0[..3] == [0, 0x16, 0x3e] && mac.0[3] < 0x80));
    // A domain that starts again does so from the configuration with the addresses.
    assert_eq!(toolstack.with_addresses(chosen.clone()), chosen);
    assert_ne!(toolstack.with_addresses(config), chosen);
}
