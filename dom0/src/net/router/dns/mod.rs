//! Names for the guests: their own are answered here, all others by the servers that the uplink knows.
//!
//! The forwarder is pure: a message in, a message out. A query to a server gets an identifier that a stranger does not
//! guess, and an answer counts only if it comes from the server that was asked, with the question that was asked.
//!
//! Source: RFC 1035; RFC 5452 (forged answers); RFC 6761, RFC 6762 (names that no server is asked for).

use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use super::{PortId, random::Random};

/// The port of name servers.
pub const PORT: u16 = 53;
/// The control domain asks name servers from one of these, drawn at the start. All lie below
/// [`super::flows::TRANSLATED_PORTS`].
pub const ASKING_PORTS: core::ops::Range<u16> = 20_000..30_000;
/// Longest message that is forwarded: what fits a packet of the guests' network.
pub const MAX_MESSAGE: usize = 1472;
/// Questions of one port that wait for an answer, at most.
pub const WAITING_PER_PORT: usize = 32;
/// Questions of all ports that wait, at most.
const WAITING: usize = 512;
/// How long an answer may take; the guest has asked again by then.
const PATIENCE_NS: u64 = 5_000_000_000;
/// For how long a guest may keep an answer about another guest's address.
const TTL_S: u32 = 10;

/// Bytes of a message's header.
const HEADER: usize = 12;
/// In a message's third byte: the message is not whole.
const TRUNCATED: u8 = 2;
const A: u16 = 1;
const PTR: u16 = 12;
const ANY: u16 = 255;
const INTERNET: u16 = 1;

/// What the answer says beside its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Fine = 0,
    BadFormat = 1,
    Failure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
}

/// The guest that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The port of the switch behind which the guest is.
    pub port: PortId,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The guest's UDP port.
    pub udp_port: u16,
}

/// What is to be done with a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this answer.
    Answer(Vec<u8>),
    /// Ask this server.
    Ask(Ipv4Addr, Vec<u8>),
    /// Nothing: this is no query.
    Drop,
}

/// What the network knows of names.
pub trait Names {
    /// The address of the guest with this name, in lower case.
    fn address(&self, name: &str) -> Option<Ipv4Addr>;
    /// The name of the guest with this address.
    fn name(&self, address: Ipv4Addr) -> Option<String>;
    /// Whether the address is one of the guests' network.
    fn is_inside(&self, address: Ipv4Addr) -> bool;
}

/// What the forwarder has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Questions answered here.
    pub own: u64,
    /// Questions handed on.
    pub asked: u64,
    /// Answers handed back.
    pub answered: u64,
    /// Answers that nobody waits for, or that do not fit their question.
    pub strange: u64,
    /// Questions refused since too many waited.
    pub refused: u64,
}

/// A question that a server was asked.
struct Waiting {
    /// The identifier at the server, and the guest's own.
    id: u16,
    asked_id: u16,
    server: Ipv4Addr,
    asker: Asker,
    /// The question as it was sent.
    question: Vec<u8>,
    until_ns: u64,
}

/// The forwarder of one network.
pub struct Forwarder {
    /// The domain of the guests' names.
    domain: String,
    servers: Vec<Ipv4Addr>,
    /// The server that answered last is asked first.
    preferred: usize,
    waiting: Vec<Waiting>,
    random: Random,
    counters: Counters,
}

impl Forwarder {
    /// A forwarder that knows no server yet. `domain` is the domain of the guests' names.
    pub fn new(domain: &str, random: Random) -> Self {
        let domain = domain.into();
        Self {
            domain,
            servers: Vec::new(),
            preferred: 0,
            waiting: Vec::new(),
            random,
            counters: Counters::default(),
        }
    }

    /// From now on these servers are asked.
    pub fn set_servers(&mut self, servers: Vec<Ipv4Addr>) {
        if self.servers != servers {
            self.servers = servers;
            self.preferred = 0;
        }
    }

    /// The servers that are asked.
    pub fn servers(&self) -> &[Ipv4Addr] {
        &self.servers
    }

    /// What the forwarder has done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The port is gone: nobody waits there any more.
    pub fn forget(&mut self, port: PortId) {
        self.waiting.retain(|waiting| waiting.asker.port != port);
    }

    /// Takes a guest's query.
    pub fn query(&mut self, now_ns: u64, asker: Asker, message: &[u8], names: &dyn Names) -> Action {
        let Some(header) = Header::read(message).filter(|header| !header.is_answer()) else {
            return Action::Drop;
        };
        let Some(question) = Question::read(message).filter(|_| header.questions == 1) else {
            return Action::Answer(answer(&header, &[], Code::BadFormat, &[]));
        };
        if header.opcode() != 0 {
            return Action::Answer(answer(&header, question.bytes, Code::NotImplemented, &[]));
        }
        if let Some((code, data)) = self.own(&question, names) {
            self.counters.own += 1;
            return Action::Answer(answer(&header, question.bytes, code, &data));
        }
        self.ask(now_ns, asker, &header, &question, message)
    }

    /// The answer to a question about the guests' network; `None`: another server's business.
    fn own(&self, question: &Question<'_>, names: &dyn Names) -> Option<(Code, Vec<u8>)> {
        if let Some(address) = reverse(&question.name) {
            if !names.is_inside(address) {
                return None;
            }
            let Some(name) = names.name(address) else { return Some((Code::NoSuchName, Vec::new())) };
            let full = alloc::format!("{name}.{}", self.domain);
            let data = if question.asks(PTR) { record(PTR, &encode(&full)) } else { Vec::new() };
            return Some((Code::Fine, data));
        }
        // A name of one label means something in this network alone, and so does one in the network's own domain.
        let label = match question.name.split_once('.') {
            None => question.name.as_str(),
            Some((label, domain)) if domain == self.domain => label,
            Some((_, domain))
                if domain.strip_suffix(self.domain.as_str()).is_some_and(|rest| rest.ends_with('.')) =>
            {
                ""
            }
            Some(_) => return None,
        };
        if question.name.is_empty() {
            // The root, whose servers others know.
            return None;
        }
        match names.address(label) {
            None => Some((Code::NoSuchName, Vec::new())),
            Some(address) if question.asks(A) => Some((Code::Fine, record(A, &address.octets()))),
            Some(_) => Some((Code::Fine, Vec::new())),
        }
    }

    fn ask(
        &mut self,
        now_ns: u64,
        asker: Asker,
        header: &Header,
        question: &Question<'_>,
        message: &[u8],
    ) -> Action {
        self.waiting.retain(|waiting| waiting.until_ns > now_ns);
        // A guest that asks the same again asks another server: the first may be deaf.
        let again = self.waiting.iter().position(|waiting| {
            waiting.asker == asker && waiting.asked_id == header.id && waiting.question == question.bytes
        });
        let again = again.map(|at| self.waiting.swap_remove(at).server);
        let of_port = self.waiting.iter().filter(|waiting| waiting.asker.port == asker.port).count();
        if self.servers.is_empty()
            || of_port >= WAITING_PER_PORT
            || self.waiting.len() >= WAITING
            || message.len() > MAX_MESSAGE
        {
            self.counters.refused += 1;
            return Action::Answer(answer(header, question.bytes, Code::Failure, &[]));
        }
        if again == Some(self.servers[self.preferred]) {
            self.preferred = (self.preferred + 1) % self.servers.len();
        }
        let server = self.servers[self.preferred];
        // There are far fewer questions that wait than identifiers.
        let id = loop {
            let id = self.random.draw() as u16;
            if self.waiting.iter().all(|waiting| waiting.id != id) {
                break id;
            }
        };
        self.waiting.push(Waiting {
            id,
            asked_id: header.id,
            server,
            asker,
            question: question.bytes.to_vec(),
            until_ns: now_ns + PATIENCE_NS,
        });
        self.counters.asked += 1;
        let mut asked = message.to_vec();
        asked[..2].copy_from_slice(&id.to_be_bytes());
        Action::Ask(server, asked)
    }

    /// Takes a server's answer: the guest that waits for the answer, and the answer as the guest expects it.
    pub fn answer(&mut self, now_ns: u64, server: Ipv4Addr, message: &[u8]) -> Option<(Asker, Vec<u8>)> {
        let fits = |waiting: &Waiting| {
            let header = Header::read(message)?;
            let question = Question::read(message)?;
            let same = header.is_answer()
                && header.questions == 1
                && header.id == waiting.id
                && waiting.server == server
                && waiting.until_ns > now_ns
                && question.bytes.eq_ignore_ascii_case(&waiting.question);
            same.then_some(())
        };
        let Some(at) = self.waiting.iter().position(|waiting| fits(waiting).is_some()) else {
            self.counters.strange += 1;
            return None;
        };
        let waiting = self.waiting.swap_remove(at);
        self.counters.answered += 1;
        let mut answer = message.to_vec();
        answer[..2].copy_from_slice(&waiting.asked_id.to_be_bytes());
        if answer.len() > MAX_MESSAGE {
            // The guests' network has no packets as long as this. The answer then says that it is not whole (RFC 2181,
            // section 9).
            answer.truncate(HEADER + waiting.question.len());
            answer[2] |= TRUNCATED;
            answer[6..HEADER].fill(0);
        }
        Some((waiting.asker, answer))
    }
}

/// A message's header.
struct Header {
    id: u16,
    flags: u16,
    questions: u16,
}

impl Header {
    fn read(message: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
        message.get(..HEADER)?;
        Some(Self { id: half(0)?, flags: half(2)?, questions: half(4)? })
    }

    fn is_answer(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    fn opcode(&self) -> u16 {
        self.flags >> 11 & 15
    }
}

/// The first question of a message.
struct Question<'a> {
    /// The name in lower case, its labels with dots between.
    name: String,
    kind: u16,
    class: u16,
    /// The question as it stands in the message.
    bytes: &'a [u8],
}

impl<'a> Question<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        let mut name = String::new();
        let mut at = HEADER;
        loop {
            let len = usize::from(*message.get(at)?);
            at += 1;
            if len == 0 {
                break;
            }
            // A first question has nothing before it that a pointer could name; and a name has 255 bytes at most.
            if len > 63 || at + len - HEADER > 254 {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            let label = message.get(at..at + len)?;
            // A dot within a label would make two labels of one.
            let shown =
                |byte: &u8| if *byte == b'.' || !byte.is_ascii_graphic() { '?' } else { char::from(*byte) };
            name.extend(label.iter().map(shown).map(|c| c.to_ascii_lowercase()));
            at += len;
        }
        let [a, b, c, d] = *message.get(at..at + 4)? else { return None };
        let bytes = message.get(HEADER..at + 4)?;
        Some(Self { name, kind: u16::from_be_bytes([a, b]), class: u16::from_be_bytes([c, d]), bytes })
    }

    fn asks(&self, kind: u16) -> bool {
        self.class == INTERNET && (self.kind == kind || self.kind == ANY)
    }
}

/// The address for which a name below `in-addr.arpa` stands.
fn reverse(name: &str) -> Option<Ipv4Addr> {
    let mut labels = name.strip_suffix(".in-addr.arpa")?.split('.');
    let mut octets = [0; 4];
    for octet in octets.iter_mut().rev() {
        *octet = labels.next()?.parse().ok()?;
    }
    labels.next().is_none().then(|| octets.into())
}

/// A name as a message has it.
fn encode(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// A record about the name of the question.
fn record(kind: u16, data: &[u8]) -> Vec<u8> {
    // A pointer to the question's name, which follows the header.
    let mut bytes = alloc::vec![0xc0, HEADER as u8];
    bytes.extend(kind.to_be_bytes());
    bytes.extend(INTERNET.to_be_bytes());
    bytes.extend(TTL_S.to_be_bytes());
    bytes.extend((data.len() as u16).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// An answer of this network's own, with at most one record.
fn answer(header: &Header, question: &[u8], code: Code, record: &[u8]) -> Vec<u8> {
    const ANSWER: u16 = 0x8000;
    const AUTHORITATIVE: u16 = 0x0400;
    const ASKED_RECURSION: u16 = 0x0100;
    const HAS_RECURSION: u16 = 0x0080;
    let opcode = header.flags & 0x7800;
    let own = if matches!(code, Code::Fine | Code::NoSuchName) { AUTHORITATIVE } else { 0 };
    let flags = ANSWER | opcode | own | header.flags & ASKED_RECURSION | HAS_RECURSION | code as u16;
    let mut bytes = Vec::with_capacity(HEADER + question.len() + record.len());
    for half in [header.id, flags, u16::from(!question.is_empty()), u16::from(!record.is_empty()), 0, 0] {
        bytes.extend(half.to_be_bytes());
    }
    bytes.extend(question);
    bytes.extend(record);
    bytes
}

#[cfg(test)]
mod tests;
