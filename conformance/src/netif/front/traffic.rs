//! Sending, receiving, and what must come of it.

use alloc::format;
use alloc::vec::Vec;

use pvrt::executor::time;
use ring_abi::io::netif::*;

use super::frames::{self, Mac};
use super::{End, Got, Made, Net, Which};
use crate::{Problem, Verdict};

/// Bytes of a frame that shows that the rest went through.
const MARK_BYTES: usize = 77;

/// The answers to one frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// The tag and the status of each piece, in order of tags.
    pub pieces: Vec<(u16, i16)>,
    /// Answers that say nothing, to slots of extra information.
    pub nulls: usize,
}

impl End {
    /// Puts a frame on the first transmit ring, unseen as yet.
    pub fn put(&mut self, made: &Made) {
        for slot in made.wire() {
            self.tx().push(&slot);
        }
    }

    /// Takes as many answers as there are slots.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frames do not come.
    pub async fn answers(&mut self, slots: usize) -> Verdict<Answers> {
        let mut answers = Answers::default();
        for _ in 0..slots {
            let (_, response) = self.tx().response::<NetifTxResponse>().await?;
            match response.status {
                NETIF_RSP_NULL => answers.nulls += 1,
                status => answers.pieces.push((response.id, status)),
            }
        }
        answers.pieces.sort_unstable();
        Ok(answers)
    }

    /// Sends a frame and looks that each slot is answered once, each piece under its tag.
    ///
    /// # Errors
    /// [`Problem::Fail`]: not so.
    pub async fn ask(&mut self, made: &Made) -> Verdict<Answers> {
        self.put(made);
        self.tx().publish();
        let answers = self.answers(made.slots.len() + made.extras.len()).await?;
        let mut wanted: Vec<u16> = made.slots.iter().map(|slot| slot.id).collect();
        wanted.sort_unstable();
        let ids: Vec<u16> = answers.pieces.iter().map(|(id, _)| *id).collect();
        ensure_eq!(ids, wanted, "the ids of the answers");
        ensure_eq!(answers.nulls, made.extras.len(), "answers that say nothing");
        Ok(answers)
    }

    /// Asks the control ring, with nothing else in flight.
    ///
    /// # Errors
    /// [`Problem::Fail`]: no answer, or one to something else.
    pub async fn control(&mut self, kind: u16, data: [u32; 3]) -> Verdict<(u32, u32)> {
        let Some(ring) = &mut self.control else {
            return Err(Problem::Error("no control ring".into()));
        };
        let id = ring.produced as u16 ^ 0x5a5a;
        ring.push(&XenNetifCtrlRequest { id, r#type: kind, data });
        ring.publish();
        let (_, response) = ring.response::<XenNetifCtrlResponse>().await?;
        ensure_eq!((response.id, response.r#type), (id, kind), "id and type of a control response");
        Ok((response.status, response.data))
    }
}

impl Net<'_> {
    /// A frame from the sender to the receiver that nobody looks into.
    pub fn frame(&self, len: usize, seed: u8) -> Vec<u8> {
        frames::plain(self.receiver.mac, self.sender.mac, len, seed)
    }

    /// A frame of [`Self::frame`] in pages of its own.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant is left.
    pub fn made(&self, len: usize, seed: u8) -> Verdict<Made> {
        Made::whole(self.sender.dom, &self.frame(len, seed))
    }

    /// A frame of [`Self::frame`] in pieces of `size` bytes that begin at `offsets`.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant is left.
    pub fn cut(&self, len: usize, size: usize, offsets: &[u16]) -> Verdict<Made> {
        Made::cut(self.sender.dom, &self.frame(len, size as u8), size, offsets)
    }

    /// The next frame of the sender's that reaches the receiver's first queue; others are none of the case's.
    ///
    /// # Errors
    /// [`Problem::Fail`]: none comes.
    pub async fn receive(&mut self) -> Verdict<Got> {
        self.receive_on(0).await
    }

    /// The same on another queue.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub async fn receive_on(&mut self, queue: usize) -> Verdict<Got> {
        let (from, restock) = (self.sender.mac, self.receiver.restock);
        loop {
            let got = self.receiver.queues[queue].receive(restock).await?;
            if got.failed || got.bytes.get(6..12) == Some(&from) {
                return Ok(got);
            }
        }
    }

    /// Sends a frame, and gives what the receiver gets.
    ///
    /// # Errors
    /// [`Problem::Fail`]: an answer is an error, or the frame does not come.
    pub async fn carry(&mut self, made: &Made) -> Verdict<Got> {
        let answers = self.sender.ask(made).await?;
        let good = answers.pieces.iter().all(|(_, status)| *status == NETIF_RSP_OKAY);
        ensure!(good, "statuses of a good frame: {:?}", answers.pieces);
        self.receive().await
    }

    /// Sends a frame that must arrive as it is.
    ///
    /// # Errors
    /// [`Problem::Fail`]: what is waited for does not happen.
    pub async fn passes(&mut self, what: &str, made: &Made) -> Verdict<Got> {
        let got = self.carry(made).await?;
        same(what, &got.bytes, &made.bytes)?;
        Ok(got)
    }

    /// Ends the case as skipped unless frames of `len` bytes pass from the sender to the receiver: a bridge may have an
    /// MTU.
    ///
    /// # Errors
    /// [`Problem::Skip`]: the backends do not do that.
    pub async fn carries(&mut self, len: usize) -> Verdict {
        let (long, mark) = (self.made(len, 0x55)?, self.mark()?);
        self.sender.ask(&long).await?;
        self.sender.ask(&mark).await?;
        let got = self.receive().await?;
        require!(got.bytes != mark.bytes, "the bridge carries no frames of {len} bytes");
        same("a long frame", &got.bytes, &long.bytes)?;
        let got = self.receive().await?;
        same("the frame behind", &got.bytes, &mark.bytes)
    }

    /// A frame unlike those before.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant is left.
    pub fn mark(&mut self) -> Verdict<Made> {
        self.marks = self.marks.wrapping_add(1);
        self.made(MARK_BYTES, 0x80 ^ self.marks)
    }

    /// Looks that a frame goes through, and that nothing is before it at the receiver.
    ///
    /// # Errors
    /// [`Problem::Fail`]: not so.
    pub async fn goes_on(&mut self) -> Verdict {
        let mark = self.mark()?;
        self.passes("the frame behind", &mark).await?;
        Ok(())
    }

    /// Takes a frame that was sent before, and looks that nothing else is in front of the next.
    ///
    /// # Errors
    /// [`Problem::Fail`]: not so.
    pub async fn goes_on_after(&mut self, made: &Made) -> Verdict {
        let got = self.receive().await?;
        same("the frame", &got.bytes, &made.bytes)?;
        self.goes_on().await
    }

    /// Sends a frame and waits for it; frames that were sent before may come first.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frame does not come.
    pub async fn arrives_at_last(&mut self) -> Verdict {
        let mark = self.mark()?;
        self.sender.ask(&mark).await?;
        while self.receive().await?.bytes != mark.bytes {}
        Ok(())
    }

    /// Sends a frame that must be answered with errors and not arrive, and leave the ring in order.
    ///
    /// # Errors
    /// [`Problem::Fail`]: not so.
    pub async fn refused(&mut self, what: &str, made: &Made) -> Verdict {
        let answers = self.sender.ask(made).await?;
        let bad = answers.pieces.iter().all(|(_, status)| *status < 0);
        ensure!(bad, "statuses of {what}: {:?}, are to be errors", answers.pieces);
        self.goes_on().await
    }

    /// Sends a frame that must be answered, well or not, and leave the ring in order; whether it arrives is open.
    ///
    /// # Errors
    /// [`Problem::Fail`]: not so.
    pub async fn borne(&mut self, made: &Made) -> Verdict {
        self.sender.ask(made).await?;
        self.goes_on_past(made).await
    }

    /// Looks that a frame goes through, behind one that was sent before and may arrive.
    ///
    /// # Errors
    /// [`Problem::Fail`]: not so.
    pub async fn goes_on_past(&mut self, made: &Made) -> Verdict {
        let mark = self.mark()?;
        self.sender.ask(&mark).await?;
        let got = self.receive().await?;
        if got.bytes != mark.bytes {
            same("the frame before", &got.bytes, &made.bytes)?;
            let got = self.receive().await?;
            same("the frame behind", &got.bytes, &mark.bytes)?;
        }
        Ok(())
    }

    /// Shows the sender's backend what ruins the connection: nothing of it arrives, no slot of it is answered as done,
    /// the receiver's own connection goes on, and the sender may connect anew.
    ///
    /// # Errors
    /// [`Problem::Fail`]: not so.
    pub async fn ruined(&mut self, act: impl FnOnce(&mut End)) -> Verdict {
        use ring_abi::io::xenbus::XenbusState::{Closed, Closing, Connected};
        act(&mut self.sender);
        self.device(Which::Sender).wait_state(&[Closing, Closed]).await?;
        let tx = self.sender.tx();
        for _ in 0..tx.waiting().min(tx.open()) {
            if let Some((_, response)) = tx.take::<NetifTxResponse>()? {
                ensure!(response.status != NETIF_RSP_OKAY, "a slot of a ruined ring was done");
            }
        }
        ensure_eq!(
            self.device(Which::Receiver).state().await?,
            Connected,
            "the state of the receiver's backend"
        );
        self.again(&super::Options::default()).await
    }

    /// Looks that nothing reaches the receiver for `ms`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: something does.
    pub async fn nothing_comes(&mut self, ms: u64) -> Verdict {
        let found = time::timeout(ms * 1_000_000, self.receive()).await;
        match found {
            Err(_) => Ok(()),
            Ok(Ok(got)) => {
                Err(Problem::Fail(format!("{} bytes came that were not to come", got.bytes.len())))
            }
            Ok(Err(problem)) => Err(problem),
        }
    }

    /// Looks that the sender gets none of its own frames.
    ///
    /// # Errors
    /// [`Problem::Fail`]: what must not happen happens.
    pub async fn hears_not_itself(&mut self) -> Verdict {
        let End { mac, queues, restock, .. } = &mut self.sender;
        while let Ok(got) = time::timeout(50_000_000, queues[0].receive(*restock)).await {
            ensure!(got?.bytes.get(6..12) != Some(&mac[..]), "the sender gets a frame of its own");
        }
        Ok(())
    }

    /// A frame to another address than the receiver's.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant is left.
    pub fn made_to(&self, to: Mac, len: usize, seed: u8) -> Verdict<Made> {
        Made::whole(self.sender.dom, &frames::plain(to, self.sender.mac, len, seed))
    }
}

/// Looks that two frames are the same, and says where they are not.
///
/// # Errors
/// [`Problem::Fail`]: the two differ.
pub fn same(what: &str, got: &[u8], wanted: &[u8]) -> Verdict {
    ensure_eq!(got.len(), wanted.len(), "bytes of {what}");
    let differs = got.iter().zip(wanted).position(|(got, wanted)| got != wanted);
    ensure!(differs.is_none(), "{what}: byte {differs:?} of {} is another", got.len());
    Ok(())
}
