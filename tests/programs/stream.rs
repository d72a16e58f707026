//! Moves a known stream over TCP, and compares every byte. The same program is both ends, in guests and on the host.
//!
//! `stream serve PORT`: for ever; prints the port (0: any) when it listens. `stream send MIB ADDRESS` and
//! `stream get MIB ADDRESS`: so many MiB go to such a server, or come from it. These fail unless all bytes are right.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, thread};

const PIECE: usize = 64 << 10;
/// How long an end waits for the other.
const PATIENCE: Duration = Duration::from_secs(60);

/// The stream: numbers without a pattern (xorshift64*). `sum` is of the pieces so far, in order.
struct Stream {
    state: u64,
    sum: u64,
}

impl Stream {
    fn new() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, sum: 0 }
    }

    /// The next piece.
    fn fill(&mut self, piece: &mut [u8]) {
        for word in piece.chunks_exact_mut(8) {
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            let next = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d);
            self.sum = (self.sum.rotate_left(7) ^ next).wrapping_mul(0x0000_0100_0000_01b3);
            word.copy_from_slice(&next.to_le_bytes());
        }
    }
}

fn pieces(mib: u16) -> usize {
    (usize::from(mib) << 20) / PIECE
}

fn send(mut to: impl Write, mib: u16) -> io::Result<String> {
    let (mut stream, mut piece) = (Stream::new(), vec![0; PIECE]);
    for _ in 0..pieces(mib) {
        stream.fill(&mut piece);
        to.write_all(&piece)?;
    }
    Ok(format!("{mib} MiB, sum {:016x}", stream.sum))
}

fn receive(mut from: impl Read, mib: u16) -> io::Result<String> {
    let mut stream = Stream::new();
    let (mut piece, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    for number in 0..pieces(mib) {
        from.read_exact(&mut piece)?;
        stream.fill(&mut expected);
        if let Some(at) = (0..PIECE).find(|at| piece[*at] != expected[*at]) {
            let text = format!("byte {} is {:#x}, not {:#x}", number * PIECE + at, piece[at], expected[at]);
            return Err(io::Error::other(text));
        }
    }
    Ok(format!("{mib} MiB, sum {:016x}", stream.sum))
}

fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One client: its first byte says what it wants to do, the next two with how many MiB.
fn serve(stream: TcpStream) -> io::Result<String> {
    let mut stream = patient(stream)?;
    let mut wish = [0; 3];
    stream.read_exact(&mut wish)?;
    let mib = u16::from_le_bytes([wish[1], wish[2]]);
    match wish[0] {
        b's' => {
            let said = receive(&stream, mib).unwrap_or_else(|error| format!("error: {error}"));
            stream.write_all(said.as_bytes())?;
            Ok(said)
        }
        b'g' => send(&stream, mib),
        other => Err(io::Error::other(format!("a client asks for {other:#x}"))),
    }
}

/// Tells a server what is wished.
fn ask(address: &str, wish: u8, mib: &str) -> io::Result<(TcpStream, u16)> {
    let mib: u16 = mib.parse().map_err(io::Error::other)?;
    let [low, high] = mib.to_le_bytes();
    let mut stream = patient(TcpStream::connect(address)?)?;
    stream.write_all(&[wish, low, high])?;
    Ok((stream, mib))
}

fn run(words: &[&str]) -> io::Result<String> {
    match words {
        ["serve", port] => {
            let port = port.parse().map_err(io::Error::other)?;
            // Of both protocols, where there are both.
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
            println!("{}", listener.local_addr()?.port());
            for stream in listener.incoming() {
                let stream = stream?;
                thread::spawn(move || {
                    if let Err(error) = serve(stream) {
                        eprintln!("stream: {error}");
                    }
                });
            }
            Ok(String::new())
        }
        ["send", mib, address] => {
            let (mut stream, mib) = ask(address, b's', mib)?;
            let ours = send(&stream, mib)?;
            let mut theirs = String::new();
            stream.read_to_string(&mut theirs)?;
            if ours == theirs { Ok(ours) } else { Err(io::Error::other(format!("{ours}; the server: {theirs}"))) }
        }
        ["get", mib, address] => {
            let (stream, mib) = ask(address, b'g', mib)?;
            receive(stream, mib)
        }
        _ => Err(io::Error::other("usage: stream serve PORT | send MIB ADDRESS | get MIB ADDRESS")),
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let begun = Instant::now();
    match run(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(said) => {
            println!("{said}, {:.1} s", begun.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("stream: {error}");
            ExitCode::FAILURE
        }
    }
}
