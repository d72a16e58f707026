//! Rules, as a person writes them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::net::headers::{Flow, protocol};
use crate::net::prefix::{Prefix, PrefixError};

/// Most rules of one vif.
pub const MAX_RULES: usize = 64;

/// Which way a packet goes, as the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

impl Direction {
    /// The way of the answers.
    #[must_use]
    pub const fn other(self) -> Direction {
        match self {
            Direction::In => Direction::Out,
            Direction::Out => Direction::In,
        }
    }
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The packet goes on.
    Accept,
    /// The packet ends here.
    Drop,
}

/// Which packets of which direction pass, or do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The way of the packets.
    pub direction: Direction,
    /// What is done with them.
    pub action: Action,
    /// The packets' protocol; `None`: any. ICMP's number stands for that of IPv6, too.
    pub protocol: Option<u8>,
    /// Where the packets come from; `None`: from anywhere.
    pub from: Option<Prefix>,
    /// Where the packets go; `None`: anywhere.
    pub to: Option<Prefix>,
    /// The first and the last port that they are for, of TCP and UDP; `None`: any.
    pub ports: Option<(u16, u16)>,
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleError<'a> {
    /// The rule does not begin with a direction and an action.
    NoStart,
    /// The word is none of a rule, or stands at a wrong place.
    Word(&'a str),
    /// Nothing follows the word, or nothing that could.
    Value(&'a str, &'a str),
    /// The range has more bits than its length tells.
    MoreBits(&'a str),
    /// Ports of a protocol that has none.
    Ports,
    /// Addresses of two kinds of IP.
    Kinds,
}

impl fmt::Display for RuleError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleError::NoStart => f.write_str("a rule begins with `in` or `out`, then `accept` or `drop`"),
            RuleError::Word(word) => {
                write!(f, "`{word}`: expected a protocol, or `from`, `to` or `port`, each once")
            }
            RuleError::Value("port", value) => {
                write!(f, "port `{value}`: expected a port such as 80, or ports such as 80-90")
            }
            RuleError::Value(word, value) => {
                write!(f, "{word} `{value}`: expected an address or a range such as 10.0.0.0/8")
            }
            RuleError::MoreBits(value) => {
                write!(
                    f,
                    "`{value}`: the address has bits behind its range; leave the length out, or the bits"
                )
            }
            RuleError::Ports => f.write_str("only tcp and udp have ports"),
            RuleError::Kinds => f.write_str("one address is of IPv4, the other of IPv6"),
        }
    }
}

const PROTOCOLS: [(&str, u8); 3] = [("icmp", protocol::ICMP), ("tcp", protocol::TCP), ("udp", protocol::UDP)];

impl Rule {
    /// Reads a rule: `in|out accept|drop [tcp|udp|icmp|NUMBER] [from PREFIX] [to PREFIX] [port FIRST[-LAST]]`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Rule, RuleError<'_>> {
        let mut words = text.split_ascii_whitespace();
        let direction = match words.next() {
            Some("in") => Direction::In,
            Some("out") => Direction::Out,
            _ => return Err(RuleError::NoStart),
        };
        let action = match words.next() {
            Some("accept") => Action::Accept,
            Some("drop") => Action::Drop,
            _ => return Err(RuleError::NoStart),
        };
        let mut rule = Rule { direction, action, protocol: None, from: None, to: None, ports: None };
        while let Some(word) = words.next() {
            let named = PROTOCOLS.iter().find_map(|(name, number)| (*name == word).then_some(*number));
            let number = || word.parse().ok().filter(|_| !word.starts_with('+'));
            if let Some(number) = named.or_else(number) {
                set(&mut rule.protocol, number, word)?;
                continue;
            }
            let value = words.next().unwrap_or_default();
            match word {
                "from" => set(&mut rule.from, prefix(word, value)?, word)?,
                "to" => set(&mut rule.to, prefix(word, value)?, word)?,
                "port" => {
                    let range = ports(value).ok_or(RuleError::Value(word, value))?;
                    set(&mut rule.ports, range, word)?;
                }
                _ => return Err(RuleError::Word(word)),
            }
        }
        if rule.ports.is_some() && !matches!(rule.protocol, Some(protocol::TCP | protocol::UDP)) {
            return Err(RuleError::Ports);
        }
        if let (Some(from), Some(to)) = (rule.from, rule.to)
            && from.is_ipv4() != to.is_ipv4()
        {
            return Err(RuleError::Kinds);
        }
        Ok(rule)
    }

    fn fits(&self, flow: &Flow) -> bool {
        let has_protocol = self.protocol.is_none_or(|number| {
            number == flow.protocol || number == protocol::ICMP && flow.protocol == protocol::ICMPV6
        });
        let is_at = |prefix: &Option<Prefix>, ip: IpAddr| prefix.is_none_or(|prefix| prefix.contains(ip));
        let has_port = self.ports.is_none_or(|(first, last)| (first..=last).contains(&flow.destination_port));
        has_protocol && has_port && is_at(&self.from, flow.source) && is_at(&self.to, flow.destination)
    }
}

/// Sets what a rule says once.
fn set<'a, T>(place: &mut Option<T>, value: T, word: &'a str) -> Result<(), RuleError<'a>> {
    if place.replace(value).is_some() { Err(RuleError::Word(word)) } else { Ok(()) }
}

fn prefix<'a>(word: &'a str, value: &'a str) -> Result<Prefix, RuleError<'a>> {
    Prefix::parse(value).map_err(|error| match error {
        PrefixError::NoPrefix => RuleError::Value(word, value),
        PrefixError::MoreBits(_) => RuleError::MoreBits(value),
    })
}

/// Reads `80` or `80-90`.
fn ports(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| if text.starts_with('+') { None } else { text.parse::<u16>().ok() };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.direction == Direction::In { "in" } else { "out" })?;
        f.write_str(if self.action == Action::Accept { " accept" } else { " drop" })?;
        if let Some(number) = self.protocol {
            match PROTOCOLS.iter().find(|(_, known)| *known == number) {
                Some((name, _)) => write!(f, " {name}")?,
                None => write!(f, " {number}")?,
            }
        }
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        match self.ports {
            None => Ok(()),
            Some((first, last)) if first == last => write!(f, " port {first}"),
            Some((first, last)) => write!(f, " port {first}-{last}"),
        }
    }
}

/// The rules of one vif, the first first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Rule>,
    /// What is done with packets to the guest that no rule fits.
    pub default_in: Action,
    /// What is done with packets from the guest that no rule fits.
    pub default_out: Action,
}

impl Rules {
    /// No rules: nothing but the defaults.
    #[must_use]
    pub const fn new(default_in: Action, default_out: Action) -> Rules {
        Rules { rules: Vec::new(), default_in, default_out }
    }

    /// Reads rules with `;` between. What no rule fits passes.
    ///
    /// # Errors
    /// What is wrong with a rule, in words.
    pub fn read(text: &str) -> Result<Rules, String> {
        let mut rules = Rules::new(Action::Accept, Action::Accept);
        for text in text.split(';').map(str::trim_ascii).filter(|text| !text.is_empty()) {
            let rule = Rule::parse(text).map_err(|error| format!("rule `{text}`: {error}"))?;
            if !rules.push(rule) {
                return Err(format!("rule `{text}`: an interface has at most {MAX_RULES}"));
            }
        }
        Ok(rules)
    }

    /// Adds a rule behind the others. False: there are [`MAX_RULES`].
    #[must_use]
    pub fn push(&mut self, rule: Rule) -> bool {
        let fits = self.rules.len() < MAX_RULES;
        if fits {
            self.rules.push(rule);
        }
        fits
    }

    /// Puts a rule before the one at that place, counted from 0. False: there are [`MAX_RULES`], or no such place.
    #[must_use]
    pub fn insert(&mut self, at: usize, rule: Rule) -> bool {
        let fits = self.rules.len() < MAX_RULES && at <= self.rules.len();
        if fits {
            self.rules.insert(at, rule);
        }
        fits
    }

    /// Takes the rule at that place out, counted from 0.
    pub fn remove(&mut self, at: usize) -> Option<Rule> {
        (at < self.rules.len()).then(|| self.rules.remove(at))
    }

    /// The rules, in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn default(&self, direction: Direction) -> Action {
        match direction {
            Direction::In => self.default_in,
            Direction::Out => self.default_out,
        }
    }

    /// Whether any packet of that direction can be refused.
    pub(super) fn may_refuse(&self, direction: Direction) -> bool {
        self.default(direction) == Action::Drop
            || self.rules.iter().any(|rule| rule.direction == direction && rule.action == Action::Drop)
    }

    /// What is done with the first packet of a flow.
    pub(super) fn action(&self, direction: Direction, flow: &Flow) -> Action {
        let fits = |rule: &&Rule| rule.direction == direction && rule.fits(flow);
        self.rules.iter().find(fits).map_or(self.default(direction), |rule| rule.action)
    }
}
