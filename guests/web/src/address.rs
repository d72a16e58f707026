//! The guest's addresses: by DHCP, or as the command line says.

use alloc::string::String;
use core::net::Ipv4Addr;
use core::str::FromStr;

use ring_abi::io::mac::MacAddr;
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{DhcpOption, EthernetAddress, IpCidr, Ipv4Cidr, Ipv6Cidr};

/// DHCP's option with the client's name (RFC 2132, section 3.14).
const HOST_NAME: u8 = 12;

/// What the command line says of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Ask a DHCP server.
    Dhcp,
    /// This address, and this gateway if there is one.
    Static(Ipv4Cidr, Option<Ipv4Addr>),
}

impl Wanted {
    /// Reads the words `ip=ADDRESS/BITS` and `gateway=ADDRESS`.
    ///
    /// # Errors
    /// What is wrong with a word, in words.
    pub fn read(ip: Option<&str>, gateway: Option<&str>) -> Result<Self, String> {
        let bad = |word: &str, value: &str, form: &str| alloc::format!("{word}={value}: expected {form}");
        let Some(text) = ip else {
            return match gateway {
                None => Ok(Self::Dhcp),
                Some(_) => Err("gateway= without ip=".into()),
            };
        };
        let cidr = Ipv4Cidr::from_str(text).map_err(|_| bad("ip", text, "such as 10.88.0.9/24"))?;
        let gateway = match gateway {
            None => None,
            Some(text) => {
                Some(Ipv4Addr::from_str(text).map_err(|_| bad("gateway", text, "such as 10.88.0.1"))?)
            }
        };
        Ok(Self::Static(cidr, gateway))
    }
}

/// Keeps the addresses of the network interface that the guest has now.
pub struct Addresses {
    wanted: Wanted,
    dhcp: Option<SocketHandle>,
}

impl Addresses {
    /// For one interface after the other. `name` is what the guest calls itself to a DHCP server.
    pub fn new(sockets: &mut SocketSet<'static>, wanted: Wanted, name: String) -> Self {
        let dhcp = (wanted == Wanted::Dhcp).then(|| {
            let mut socket = dhcpv4::Socket::new();
            // The guest lives as long as its options do.
            let name: &'static [u8] = String::leak(name).as_bytes();
            let options = alloc::vec![DhcpOption { kind: HOST_NAME, data: name }];
            socket.set_outgoing_options(options.leak());
            sockets.add(socket)
        });
        Self { wanted, dhcp }
    }

    /// Begins with a new interface: static addresses at once, others when a server has answered.
    pub fn begin(&self, interface: &mut Interface, sockets: &mut SocketSet<'_>, mac: EthernetAddress) {
        add(interface, Ipv6Cidr::new(MacAddr(mac.0).link_local(), 64).into());
        if let Wanted::Static(cidr, gateway) = self.wanted {
            add(interface, cidr.into());
            set_gateway(interface, gateway);
        }
        if let Some(handle) = self.dhcp {
            sockets.get_mut::<dhcpv4::Socket<'_>>(handle).reset();
        }
    }

    /// Takes what the DHCP server has said since the last call; gives the new address, if there is one.
    pub fn refresh(&self, interface: &mut Interface, sockets: &mut SocketSet<'_>) -> Option<Ipv4Cidr> {
        let socket = sockets.get_mut::<dhcpv4::Socket<'_>>(self.dhcp?);
        match socket.poll()? {
            dhcpv4::Event::Configured(config) => {
                interface
                    .update_ip_addrs(|addresses| addresses.retain(|cidr| !matches!(cidr, IpCidr::Ipv4(_))));
                add(interface, config.address.into());
                set_gateway(interface, config.router);
                Some(config.address)
            }
            dhcpv4::Event::Deconfigured => {
                interface
                    .update_ip_addrs(|addresses| addresses.retain(|cidr| !matches!(cidr, IpCidr::Ipv4(_))));
                set_gateway(interface, None);
                None
            }
        }
    }
}

fn add(interface: &mut Interface, cidr: IpCidr) {
    interface.update_ip_addrs(|addresses| {
        if addresses.push(cidr).is_err() {
            log::warn!("no room for the address {cidr}");
        }
    });
}

fn set_gateway(interface: &mut Interface, gateway: Option<Ipv4Addr>) {
    interface.routes_mut().remove_default_ipv4_route();
    if let Some(gateway) = gateway
        && interface.routes_mut().add_default_ipv4_route(gateway).is_err()
    {
        log::warn!("no room for the route by {gateway}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(Wanted::read(None, None), Ok(Wanted::Dhcp));
        let cidr = Ipv4Cidr::new(Ipv4Addr::new(10, 88, 0, 9), 24);
        assert_eq!(Wanted::read(Some("10.88.0.9/24"), None), Ok(Wanted::Static(cidr, None)));
        let gateway = Some(Ipv4Addr::new(10, 88, 0, 1));
        assert_eq!(Wanted::read(Some("10.88.0.9/24"), Some("10.88.0.1")), Ok(Wanted::Static(cidr, gateway)));
        for (ip, gateway, said) in [
            (Some("10.88.0.9"), None, "ip=10.88.0.9: expected such as 10.88.0.9/24"),
            (Some("10.88.0.9/33"), None, "ip=10.88.0.9/33: expected such as 10.88.0.9/24"),
            (Some("10.88.0.9/24"), Some("x"), "gateway=x: expected such as 10.88.0.1"),
            (None, Some("10.88.0.1"), "gateway= without ip="),
        ] {
            assert_eq!(Wanted::read(ip, gateway), Err(said.into()));
        }
    }
}
