//! CPUs of a test that are threads, of which one goes on at a time: at each point where another CPU could come between, a seed
//! or a plan says which goes on. So the same seed does the same again, and plans go through all ways of few changes.

#[cfg(test)]
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// At one point of so many, another CPU goes on, unless a game says otherwise.
const POINTS: u64 = 10;
/// So many times in a row all CPUs wait for each other before that is called a deadlock.
const MOST_WAITS: u32 = 1_000_000;
/// A thread that waits for another lets others run once in so many turns of the wait.
const SPINS_BEFORE_YIELD: u32 = 200;

/// The turns of one game.
#[derive(Debug)]
struct Turns {
    state: Mutex<State>,
    changed: Condvar,
    /// Another CPU may go on between any two words of the scheduler too.
    is_fine: bool,
}

#[derive(Debug)]
struct State {
    seed: u64,
    /// CPUs that have something to do, a bit each.
    players: u64,
    turn: usize,
    /// At one point of so many, another CPU goes on.
    points: u64,
    /// How often in a row a CPU could not go on.
    waits: u32,
    /// After how many points each turn ends, the next turn last; without one, the seed says so. The last turn has no end.
    plan: Option<Vec<u32>>,
}

std::thread_local! {
    /// The game that this thread takes part in, and its number there.
    static PLACE: RefCell<Option<(Arc<Turns>, usize)>> = const { RefCell::new(None) };
}

impl State {
    fn choice(&mut self, of: u64) -> u64 {
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        (self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % of
    }

    /// Whether the turn ends at this point.
    fn ends(&mut self) -> bool {
        let Some(plan) = &mut self.plan else { return self.choice(self.points) == 0 };
        match plan.last_mut() {
            None => false,
            Some(0) => plan.pop().is_some(),
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }

    /// Gives the turn to one of those that have something to do, but not to `me` if there is another.
    fn pass(&mut self, me: usize) {
        let others = self.players & !(1 << me);
        if others == 0 {
            return;
        }
        let n = self.choice(others.count_ones().into());
        self.turn = (0..64).filter(|bit| others >> bit & 1 != 0).nth(n as usize).expect("as many as counted");
    }
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, state: MutexGuard<'_, State>, me: usize) {
        let waited = self.changed.wait_while(state, |state| state.turn != me);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn pass(&self, mut state: MutexGuard<'_, State>, me: usize) {
        state.pass(me);
        if state.turn != me {
            self.changed.notify_all();
            self.wait(state, me);
        }
    }

    fn leave(&self, me: usize) {
        let mut state = self.state();
        state.pass(me);
        state.players &= !(1 << me);
        self.changed.notify_all();
    }
}

/// Another CPU may come between here.
pub(crate) fn point() {
    PLACE.with_borrow(|place| {
        let Some((turns, me)) = place else { return };
        let mut state = turns.state();
        state.waits = 0;
        if state.ends() {
            turns.pass(state, *me);
        }
    });
}

/// Another CPU may come between two words here, in games that are fine.
pub(crate) fn fine_point() {
    if PLACE.with_borrow(|place| place.as_ref().is_some_and(|(turns, _)| turns.is_fine)) {
        point();
    }
}

/// This CPU cannot go on before another CPU has: that one's turn. Nothing happens on a thread that takes no turns.
///
/// # Panics
/// If all wait for each other.
pub(crate) fn wait() {
    PLACE.with_borrow(|place| {
        let Some((turns, me)) = place else { return wait_in_parallel() };
        let mut state = turns.state();
        state.waits += 1;
        assert!(state.waits < MOST_WAITS, "the CPUs wait for each other");
        turns.pass(state, *me);
    });
}

/// One turn of a wait by a thread that takes no turns: it spins for a while, since who is waited for mostly has a CPU of its own.
fn wait_in_parallel() {
    std::thread_local! {
        static SPINS: Cell<u32> = const { Cell::new(0) };
    }
    let spins = SPINS.replace(SPINS.get().wrapping_add(1));
    if spins.is_multiple_of(SPINS_BEFORE_YIELD) { thread::yield_now() } else { core::hint::spin_loop() }
}

/// Leaves the game also when its CPU panicked.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some((turns, me)) = PLACE.take() {
            turns.leave(me);
        }
    }
}

/// Lets each of `cpus` do its part, in turns that `seed` chooses, until all are done. A CPU's panic is told when they are.
pub(crate) fn play(seed: u64, cpus: Vec<impl FnOnce() + Send>) {
    play_by(seed, (0, POINTS), None, false, cpus);
}

/// The same, where another CPU may go on between any two words of the scheduler too, at one point of `points`.
#[cfg(test)]
pub(crate) fn play_finely(seed: u64, points: u64, cpus: Vec<impl FnOnce() + Send>) {
    play_by(seed, (0, points), None, true, cpus);
}

/// The same, where CPU `turn` begins and another goes on at one point of `points`.
pub(crate) fn play_often(seed: u64, (turn, points): (usize, u64), cpus: Vec<impl FnOnce() + Send>) {
    play_by(seed, (turn, points), None, false, cpus);
}

/// Does the same in turns that end after so many points each, the first CPU's turn first. The rest is one turn.
#[cfg(test)]
pub(crate) fn play_plan(points: &[u32], cpus: Vec<impl FnOnce() + Send>) {
    play_by(1, (0, POINTS), Some(points.iter().rev().copied().collect()), false, cpus);
}

/// Turns of the first CPU, of the second, and of the first again, of fewer points than these each.
#[cfg(test)]
pub(crate) fn plans([a, b, c]: [u32; 3]) -> impl Iterator<Item = [u32; 3]> {
    (0..a).flat_map(move |a| (0..b).flat_map(move |b| (0..c).map(move |c| [a, b, c])))
}

#[cfg(test)]
impl super::World {
    /// Lets two CPUs do their part at the same time, in turns of so many points each.
    pub(crate) fn at_once(&self, points: &[u32], first: impl FnOnce() + Send, second: impl FnOnce() + Send) {
        let acts: [Box<dyn FnOnce() + Send>; 2] = [Box::new(first), Box::new(second)];
        let on = |(cpu, act): (usize, Box<dyn FnOnce() + Send>)| {
            move || {
                self.hv.platform.on_cpu(cpu);
                act();
            }
        };
        play_plan(points, acts.into_iter().enumerate().map(on).collect());
        self.hv.platform.on_cpu(0);
    }
}

fn play_by(
    seed: u64,
    (turn, points): (usize, u64),
    plan: Option<Vec<u32>>,
    is_fine: bool,
    cpus: Vec<impl FnOnce() + Send>,
) {
    let players = (1 << cpus.len()) - 1;
    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let state = State { seed, players, turn, points, waits: 0, plan };
    let turns = Arc::new(Turns { state: Mutex::new(state), changed: Condvar::new(), is_fine });
    thread::scope(|scope| {
        for (me, act) in cpus.into_iter().enumerate() {
            let turns = turns.clone();
            scope.spawn(move || {
                turns.wait(turns.state(), me);
                PLACE.set(Some((turns, me)));
                let _leave = Leave;
                act();
            });
        }
    });
}
