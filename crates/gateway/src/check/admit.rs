//! Whether a call may start now: one fair line before each model whose places are counted.
//!
//! `rules::queue` decides who goes next; this file keeps the lines, wakes who may start, and refuses who can't start
//! before his patience ends. A model without counted places has no line. What waits holds nothing upstream, and
//! leaves the line when its client leaves. Called by `way` after `reserve`.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderMap;
use rules::adapt::{Adaptive, Told};
use rules::key::KeyId;
use rules::queue::{Ask, Entered, Left, Place, Queue, Ticket};
use rules::refusal::Refusal;
use tokio::sync::oneshot;

use crate::check::authenticate::Caller;
use crate::settings::{Model, Places, Settings};

/// Who shares a model's places: a project, or a key without one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tenant {
    Project(Arc<str>),
    Key(KeyId),
}

/// The lines of all models, by name. They outlive a reload: who waits goes on waiting.
#[derive(Debug, Default)]
pub(crate) struct Lines(ArcSwap<HashMap<String, Arc<Line>>>);

/// One model's line.
#[derive(Debug)]
pub(crate) struct Line {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: Queue<Tenant>,
    /// What the config says of its places.
    places: Places,
    /// Where they are learned.
    adaptive: Option<Adaptive>,
    /// Who is told `true` when he may start, `false` when he had to make room.
    waiting: HashMap<Ticket, oneshot::Sender<bool>>,
}

impl Lines {
    /// Takes up the models of a config.
    pub(crate) fn take_up(&self, settings: &Settings) {
        let before = self.0.load();
        let counted = settings.models.values().filter_map(|model| {
            let places = model.places?;
            let line = before.get(&model.name).map_or_else(
                || Arc::new(Line::new(places, model.queue)),
                |line| {
                    line.resize(places, model.queue);
                    Arc::clone(line)
                },
            );
            Some((model.name.clone(), line))
        });
        self.0.store(Arc::new(counted.collect()));
    }

    /// Shows each line's model, and how many calls run and wait there.
    pub(crate) fn each(&self, mut show: impl FnMut(&str, u32, usize)) {
        for (model, line) in self.0.load().iter() {
            let state = line.lock();
            let (running, waiting) = (state.queue.running(), state.queue.waiting());
            drop(state);
            show(model, running, waiting);
        }
    }

    /// Time has passed: places that were kept for somebody may be free for who waits.
    pub(crate) fn tick(&self) {
        for line in self.0.load().values() {
            line.tick();
        }
    }

    /// Lets a call of `tokens` in, or into the line.
    ///
    /// # Errors
    /// [`Refusal::QueueFull`] when its own caller's calls fill the line, [`Refusal::Overloaded`] when others' do, or when
    /// it would wait for longer than the config or its client allows.
    pub(crate) fn admit(
        &self,
        caller: &Caller,
        model: &Model,
        tokens: u64,
        patience: Option<Duration>,
    ) -> Result<Admission, Refusal> {
        let lines = self.0.load();
        let Some(line) = lines.get(&model.name).filter(|_| model.places.is_some()) else {
            return Ok(Admission::Free);
        };
        let key = Tenant::Key(caller.key.id);
        let project = caller.key.project.clone().map(Tenant::Project);
        let ask = Ask {
            tenant: project.unwrap_or_else(|| key.clone()),
            caller: key,
            tokens,
            weight: caller.policy.weight,
        };
        let patience = patience.map_or(model.queue_timeout, |p| p.min(model.queue_timeout));
        line.enter(ask, patience)
    }
}

impl Line {
    fn new(places: Places, most_waiting: usize) -> Self {
        Self {
            start: Instant::now(),
            state: Mutex::new(State {
                queue: Queue::new(places.count, most_waiting),
                places,
                adaptive: learner(places),
                waiting: HashMap::new(),
            }),
        }
    }

    fn enter(self: &Arc<Self>, ask: Ask<Tenant>, patience: Duration) -> Result<Admission, Refusal> {
        let mut state = self.lock();
        let (mut started, now) = (Vec::new(), self.now());
        let entered = state.queue.enter(ask, patience, now, &mut started);
        state.tell(&started);
        match entered {
            Entered::Started(ticket) => Ok(Admission::Seated(Seat::new(self, ticket))),
            Entered::Full { own: true } => Err(Refusal::QueueFull {
                retry: state.queue.wait_of_next(),
            }),
            Entered::Full { own: false } => Err(Refusal::Overloaded {
                retry: state.queue.wait_of_next(),
            }),
            Entered::TooLate(retry) => Err(Refusal::Overloaded { retry }),
            Entered::Waiting { ticket, instead } => {
                if let Some(left) = instead.and_then(|ticket| state.waiting.remove(&ticket)) {
                    // Whoever isn't there any more needn't be told.
                    left.send(false).ok();
                }
                let (told, turn) = oneshot::channel();
                state.waiting.insert(ticket, told);
                drop(state);
                // From here on, dropping it leaves the line.
                Ok(Admission::Waiting(Waiting {
                    seat: Seat::new(self, ticket),
                    turn,
                    until: tokio::time::Instant::now() + patience,
                }))
            }
        }
    }

    fn tick(&self) {
        let mut state = self.lock();
        let (mut started, now) = (Vec::new(), self.now());
        state.queue.tick(now, &mut started);
        state.tell(&started);
    }

    fn resize(&self, places: Places, most_waiting: usize) {
        let mut state = self.lock();
        if places != state.places {
            // Other replicas, or another way to count them: what was learned isn't about them.
            state.places = places;
            state.adaptive = learner(places);
        }
        let learned = state.adaptive.as_ref().map(Adaptive::limit);
        let count = learned.unwrap_or(places.count);
        state.resize(count, most_waiting, self.now());
    }

    /// Learns from a call that started at `started`.
    fn learn(&self, told: Told, started: u64) {
        let mut state = self.lock();
        let (now, running) = (self.now(), state.queue.running());
        let Some(adaptive) = &mut state.adaptive else {
            return;
        };
        adaptive.learn(told, started, now, running);
        let (limit, most_waiting) = (adaptive.limit(), state.queue.most_waiting());
        state.resize(limit, most_waiting, now);
    }

    fn leave(&self, ticket: Ticket, left: Left) {
        let mut state = self.lock();
        let mut started = Vec::new();
        state.waiting.remove(&ticket);
        let now = self.now();
        state.queue.leave(ticket, left, now, &mut started);
        state.tell(&started);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn resize(&mut self, places: u32, most_waiting: usize, now: u64) {
        if self.queue.places() == places && self.queue.most_waiting() == most_waiting {
            return;
        }
        let mut started = Vec::new();
        self.queue.resize(places, most_waiting, now, &mut started);
        self.tell(&started);
    }

    fn tell(&mut self, started: &[Ticket]) {
        for ticket in started {
            if let Some(turn) = self.waiting.remove(ticket) {
                // Whoever is leaving right now gives the place back himself.
                turn.send(true).ok();
            }
        }
    }
}

/// What learns a model's places, between one and many for each that it begins with.
fn learner(places: Places) -> Option<Adaptive> {
    let most = places.count.saturating_mul(LEARN_UP_TO);
    places.learned.then(|| Adaptive::new(places.count, 1, most))
}

/// How a call was let in.
#[derive(Debug)]
pub(crate) enum Admission {
    /// Its model's places aren't counted.
    Free,
    /// It has a place.
    Seated(Seat),
    /// It waits for one.
    Waiting(Waiting),
}

impl Admission {
    /// The line that it waits in.
    pub(crate) fn queued(&self) -> Option<Queued> {
        match self {
            Self::Waiting(waiting) => Some(Queued {
                line: Arc::clone(&waiting.seat.line),
                ticket: waiting.seat.ticket,
            }),
            Self::Free | Self::Seated(_) => None,
        }
    }

    /// Waits for the place, if it needs one.
    ///
    /// # Errors
    /// As [`Lines::admit`].
    pub(crate) async fn seat(self) -> Result<Option<Seat>, Refusal> {
        match self {
            Self::Free => Ok(None),
            Self::Seated(seat) => Ok(Some(seat)),
            Self::Waiting(waiting) => waiting.seat().await.map(Some),
        }
    }
}

/// A call in the line. Dropped, it leaves.
#[derive(Debug)]
pub(crate) struct Waiting {
    seat: Seat,
    turn: oneshot::Receiver<bool>,
    until: tokio::time::Instant,
}

impl Waiting {
    async fn seat(mut self) -> Result<Seat, Refusal> {
        let told = tokio::time::timeout_at(self.until, &mut self.turn).await;
        match told {
            Ok(Ok(true)) => {
                self.seat.since = self.seat.line.now();
                Ok(self.seat)
            }
            Ok(Ok(false) | Err(_)) => Err(Refusal::QueueFull {
                retry: self.seat.line.lock().queue.wait_of_next(),
            }),
            Err(_elapsed) => {
                let state = self.seat.line.lock();
                let place = state.queue.place(self.seat.ticket);
                Err(Refusal::Overloaded {
                    retry: place.map_or_else(|| state.queue.wait_of_next(), |place| place.wait),
                })
            }
        }
    }
}

/// A place that a call has, or waits for. Dropped, it goes to the next.
#[derive(Debug)]
pub(crate) struct Seat {
    line: Arc<Line>,
    ticket: Ticket,
    /// When the place was given, on the line's clock.
    since: u64,
    /// What it has to show for it.
    left: Left,
}

impl Seat {
    fn new(line: &Arc<Line>, ticket: Ticket) -> Self {
        Self {
            line: Arc::clone(line),
            ticket,
            since: line.now(),
            left: Left::Unused,
        }
    }

    /// The call goes to an upstream now.
    pub(crate) fn begin(&mut self) {
        self.left = Left::Unknown;
    }

    /// The first token of a stream came now.
    pub(crate) fn first_token(&self) {
        let ms = self.line.now().saturating_sub(self.since);
        self.line.learn(Told::FirstToken { ms }, self.since);
    }

    /// The answer came in one piece, now.
    pub(crate) fn answered(&self, tokens: u64) {
        let ms = self.line.now().saturating_sub(self.since);
        self.line.learn(Told::Whole { ms, tokens }, self.since);
    }

    /// The server had too much: it said so, or didn't answer in time.
    pub(crate) fn too_much(&self) {
        self.line.learn(Told::TooMuch, self.since);
    }

    /// Gives the place back after a call that held so many tokens; `None`: no upstream had it.
    pub(crate) fn give_back(mut self, tokens: Option<u64>) {
        self.left = tokens.map_or(Left::Unused, Left::Held);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.line.leave(self.ticket, self.left);
    }
}

/// A look at a waiting call's place, for comments on its stream.
#[derive(Clone, Debug)]
pub(crate) struct Queued {
    line: Arc<Line>,
    ticket: Ticket,
}

impl Queued {
    /// Where it stands; `None` when it no longer waits.
    pub(crate) fn place(&self) -> Option<Place> {
        self.line.lock().queue.place(self.ticket)
    }
}

/// Whether a call has left the line and gone to an upstream: shared by its delivery and its account.
#[derive(Clone, Debug, Default)]
pub(crate) struct Begun(Rc<Cell<bool>>);

impl Begun {
    pub(crate) fn set(&self) {
        self.0.set(true);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.get()
    }
}

/// By how much learned places may exceed those that they begin with: 8 become 1024.
const LEARN_UP_TO: u32 = 128;

/// How long the client says that it will wait: official SDKs tell their time limit in seconds.
pub(crate) fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("x-stainless-timeout")?.to_str().ok()?;
    let seconds: f64 = text.trim().parse().ok()?;
    if !seconds.is_finite() || seconds <= 0.0 {
        return None;
    }
    Duration::try_from_secs_f64(seconds.min(86_400.0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(id: &str) -> Ask<Tenant> {
        let key = Tenant::Key(KeyId::parse(id).unwrap());
        Ask {
            tenant: key.clone(),
            caller: key,
            tokens: 10,
            weight: 1,
        }
    }

    const ONE: Places = Places {
        count: 1,
        learned: false,
    };

    const LONG: Duration = Duration::from_secs(600);

    fn waiting(line: &Arc<Line>, id: &str) -> Waiting {
        match line.enter(ask(id), LONG) {
            Ok(Admission::Waiting(waiting)) => waiting,
            other => panic!("{other:?}"),
        }
    }

    fn counts(line: &Line) -> (u32, usize, usize) {
        let state = line.lock();
        let queue = &state.queue;
        (queue.running(), queue.waiting(), state.waiting.len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_goes_to_who_waits_and_whoever_leaves_takes_nothing_along() {
        let line = Arc::new(Line::new(ONE, 8));
        let Ok(Admission::Seated(seat)) = line.enter(ask("aaaaaaaaaaaa"), LONG) else {
            panic!("no place");
        };
        let (gone, one, two) = (
            waiting(&line, "aaaaaaaaaaaa"),
            waiting(&line, "aaaaaaaaaaaa"),
            waiting(&line, "aaaaaaaaaaaa"),
        );
        drop(gone);
        assert_eq!(counts(&line), (1, 2, 2));
        seat.give_back(Some(5));
        // Told that it may start, and gone before it heard: the next one starts.
        assert_eq!(counts(&line), (1, 1, 1));
        drop(one);
        let seat = two.seat().await.unwrap();
        assert_eq!(counts(&line), (1, 0, 0));
        drop(seat);
        assert_eq!(counts(&line), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_the_wait_and_what_can_not_be_met_does_not_begin() {
        let line = Arc::new(Line::new(ONE, 8));
        let _seat = line.enter(ask("aaaaaaaaaaaa"), LONG).unwrap();
        let short = Duration::from_millis(10);
        let refused = line.enter(ask("bbbbbbbbbbbb"), short).err();
        assert!(
            matches!(refused, Some(Refusal::Overloaded { .. })),
            "{refused:?}"
        );
        assert_eq!(counts(&line), (1, 0, 0));
        let Ok(Admission::Waiting(waiting)) =
            line.enter(ask("bbbbbbbbbbbb"), Duration::from_secs(2))
        else {
            panic!("doesn't wait");
        };
        let refused = waiting.seat().await.err();
        assert!(
            matches!(refused, Some(Refusal::Overloaded { .. })),
            "{refused:?}"
        );
        assert_eq!(counts(&line), (1, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_makes_room_is_told_so() {
        let line = Arc::new(Line::new(ONE, 2));
        let _seat = line.enter(ask("aaaaaaaaaaaa"), LONG).unwrap();
        let (_first, second) = (
            waiting(&line, "aaaaaaaaaaaa"),
            waiting(&line, "aaaaaaaaaaaa"),
        );
        let full = line.enter(ask("aaaaaaaaaaaa"), LONG).err();
        assert!(matches!(full, Some(Refusal::QueueFull { .. })), "{full:?}");
        let _other = waiting(&line, "bbbbbbbbbbbb");
        let refused = second.seat().await.err();
        assert!(
            matches!(refused, Some(Refusal::QueueFull { .. })),
            "{refused:?}"
        );
        assert_eq!(counts(&line), (1, 2, 2));
    }

    #[test]
    fn learned_places_grow_with_fast_tokens_and_shrink_when_it_is_too_much() {
        let learned = Places {
            count: 4,
            learned: true,
        };
        let line = Arc::new(Line::new(learned, 8));
        let seat = |line: &Arc<Line>| match line.enter(ask("aaaaaaaaaaaa"), LONG) {
            Ok(Admission::Seated(seat)) => seat,
            other => panic!("{other:?}"),
        };
        let seats: Vec<_> = (0..4).map(|_| seat(&line)).collect();
        let mut next = waiting(&line, "aaaaaaaaaaaa");
        assert!(next.turn.try_recv().is_err());
        for _ in 0..100 {
            seats[0].first_token();
        }
        assert_eq!(next.turn.try_recv(), Ok(true));
        let before = line.lock().queue.places();
        assert!(before > 4, "{before}");
        seats[1].too_much();
        assert!(line.lock().queue.places() < before);
        // A reload that says the same forgets nothing; another number of replicas begins anew, and so does one that
        // counts them.
        let now = line.lock().queue.places();
        line.resize(learned, 8);
        assert_eq!(line.lock().queue.places(), now);
        let more = Places {
            count: 16,
            learned: true,
        };
        line.resize(more, 8);
        assert_eq!(line.lock().queue.places(), 16);
        line.resize(ONE, 8);
        assert_eq!(line.lock().queue.places(), 1);
    }

    #[test]
    fn whole_answers_let_learned_places_grow() {
        let learned = Places {
            count: 2,
            learned: true,
        };
        let line = Arc::new(Line::new(learned, 8));
        let Ok(Admission::Seated(seat)) = line.enter(ask("aaaaaaaaaaaa"), LONG) else {
            panic!("no place");
        };
        let Ok(Admission::Seated(_other)) = line.enter(ask("aaaaaaaaaaaa"), LONG) else {
            panic!("no place");
        };
        for _ in 0..100 {
            seat.answered(10);
        }
        assert!(line.lock().queue.places() > 2);
    }

    #[test]
    fn an_sdks_time_limit_is_read_within_reason() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-stainless-timeout", text.parse().unwrap());
            patience(&headers)
        };
        assert_eq!(read("600"), Some(Duration::from_secs(600)));
        assert_eq!(read("2.5"), Some(Duration::from_millis(2500)));
        assert_eq!(read("1e300"), Some(Duration::from_secs(86_400)));
        for text in ["0", "-1", "NaN", "inf", "soon", ""] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(patience(&HeaderMap::new()), None);
    }
}
