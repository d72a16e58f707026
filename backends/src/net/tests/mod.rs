//! Both ends in one process: a sender and a receiver, honest or not, and the copies between their pages.

mod control;
mod credit;
mod hostile;
mod receive;
mod transmit;
mod world;
