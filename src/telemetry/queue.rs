//! The queue of log records, and the thread that writes them.
//!
//! The reader of the log may stop, go away or run out of disk space. Builds must go on then, so a record is dropped and
//! counted if the queue is full or the record cannot be written. Once records can be written again, one record says how
//! many are missing.

use std::{
    borrow::Cow,
    cell::Cell,
    io::{self, Write},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

use super::{LogFormat, dropped_records, record};

/// The size of the queue, in bytes: some thousand records, which a busy proxy writes in a second or two.
const CAPACITY: usize = 1 << 20;

/// How long records gather after some have been written. To wake the thread for each would cost a short build some
/// percent of its CPU time. A record after a quiet moment is written at once.
const GATHER: Duration = Duration::from_millis(10);

/// The pause after a failed write: a full disk or a closed pipe does not recover at once.
const PAUSE: Duration = Duration::from_millis(200);

thread_local! {
    /// Whether this is the writing thread, whose record about dropped records is always accepted.
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

/// The queue. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    format: LogFormat,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when records are to be written: the thread was idle, or gathers them and must not go on with that.
    filled: Condvar,
    /// Notified when all records have been written or dropped.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whole records, one after the other.
    waiting: Vec<u8>,
    /// Whether the thread waits for a first record.
    idle: bool,
    /// Whether somebody waits until all records are written.
    flushing: bool,
    /// Whether records that were taken out are still being written.
    writing: bool,
}

impl Queue {
    /// A queue whose thread writes to `sink`.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(super) fn start(format: LogFormat, sink: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let queue = Self { shared: Arc::clone(&shared), format };
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write(sink))?;
        Ok(queue)
    }

    /// Adds a record or a line, unless the queue is full.
    pub(super) fn push(&self, record: &[u8]) {
        let Some(record) = record::bounded(record, self.format) else {
            dropped_records().inc();
            return;
        };
        let mut state = self.shared.state.lock();
        if state.waiting.len() + record.len() > CAPACITY && !WRITES.get() {
            dropped_records().inc();
            return;
        }
        state.waiting.extend_from_slice(&record);
        if std::mem::take(&mut state.idle) || state.waiting.len() > CAPACITY / 2 {
            self.shared.filled.notify_one();
        }
    }

    /// Waits until all records have been written, but no longer than `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.shared.state.lock();
        state.flushing = true;
        self.shared.filled.notify_one();
        while state.writing || !state.waiting.is_empty() {
            if self.shared.emptied.wait_until(&mut state, end).timed_out() {
                break;
            }
        }
        state.flushing = false;
    }
}

impl Shared {
    fn write(&self, sink: impl Write) {
        WRITES.set(true);
        let mut sink = Sink { inner: sink, torn: false };
        let mut batch = Vec::new();
        let mut told = dropped_records().get();
        loop {
            self.take(&mut batch);
            let lost = sink.write(&batch);
            batch.clear();
            if lost > 0 {
                dropped_records().inc_by(lost);
                self.done();
                thread::sleep(PAUSE);
                continue;
            }
            let total = dropped_records().get();
            if total != told {
                warn!(dropped = total - told, total, "log records dropped");
                told = total;
            }
            self.done();
            self.gather();
        }
    }

    /// Waits for records and takes all of them. The memory of `batch` is used for the next ones.
    fn take(&self, batch: &mut Vec<u8>) {
        let mut state = self.state.lock();
        while state.waiting.is_empty() {
            state.idle = true;
            self.filled.wait(&mut state);
        }
        std::mem::swap(&mut state.waiting, batch);
        state.writing = true;
    }

    fn done(&self) {
        self.state.lock().writing = false;
        self.emptied.notify_all();
    }

    /// Lets records gather for a moment.
    fn gather(&self) {
        let mut state = self.state.lock();
        if !state.flushing {
            self.filled.wait_for(&mut state, GATHER);
        }
    }
}

/// The file to which records are written.
struct Sink<W> {
    inner: W,
    /// Whether the last write ended inside a record.
    torn: bool,
}

impl<W: Write> Sink<W> {
    /// Writes whole records. Returns how many could not be written.
    fn write(&mut self, records: &[u8]) -> u64 {
        let records = match self.torn {
            true => Cow::Owned([b"\n", records].concat()),
            false => Cow::Borrowed(records),
        };
        let mut rest = &*records;
        while !rest.is_empty() {
            match self.inner.write(rest) {
                Ok(0) => break,
                Ok(len) => {
                    self.torn = rest[len - 1] != b'\n';
                    rest = &rest[len..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process has made the pipe non-blocking: the reader is slow, not gone.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
                Err(_gone_or_full) => break,
            }
        }
        let lost = rest.iter().filter(|byte| **byte == b'\n').count();
        u64::try_from(lost).unwrap_or(u64::MAX)
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Records<'a>;

    fn make_writer(&'a self) -> Records<'a> {
        Records(self)
    }
}

/// Takes the records of one event.
#[derive(Debug)]
pub(super) struct Records<'a>(&'a Queue);

impl Write for Records<'_> {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        self.0.push(record);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Writes nothing before it may, and then hands on what it gets or fails.
    struct Gate {
        may: mpsc::Receiver<bool>,
        wrote: mpsc::Sender<Vec<u8>>,
        open: Option<bool>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let open = self.open.take().or_else(|| self.may.recv().ok()).unwrap_or(true);
            if !open {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let _ = self.wrote.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (Queue, mpsc::Sender<bool>, mpsc::Receiver<Vec<u8>>) {
        let (open, may) = mpsc::channel();
        let (wrote, written) = mpsc::channel();
        let gate = Gate { may, wrote, open: None };
        (Queue::start(LogFormat::Text, gate).expect("a thread"), open, written)
    }

    #[test]
    fn records_that_nobody_reads_are_dropped_and_nobody_waits() {
        let (queue, open, written) = gated();
        let before = dropped_records().get();
        let record = [&[b'x'; 1000][..], b"\n"].concat();
        let most = 2 * CAPACITY / record.len();
        for _ in 0..2 * most {
            queue.push(&record);
        }
        let dropped = dropped_records().get() - before;
        assert!(usize::try_from(dropped).is_ok_and(|dropped| dropped >= most), "{dropped}");
        drop(open);
        queue.flush(LIMIT);
        let written: usize = written.try_iter().map(|bytes| bytes.len()).sum();
        assert!(written >= CAPACITY - record.len(), "{written}");
    }

    #[test]
    fn records_that_cannot_be_written_are_counted_and_the_next_ones_are_written() {
        let (queue, open, written) = gated();
        let before = dropped_records().get();
        open.send(false).expect("it writes");
        queue.push(b"one\n");
        queue.flush(LIMIT);
        assert!(dropped_records().get() > before);
        drop(open);
        queue.push(b"two\n");
        queue.flush(LIMIT);
        assert_eq!(written.try_iter().collect::<Vec<_>>().concat(), b"two\n");
    }

    #[test]
    fn a_record_after_a_torn_one_begins_a_line() {
        struct Short(Vec<u8>, usize);
        impl Write for Short {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let len = bytes.len().min(self.1);
                self.1 -= len;
                self.0.extend_from_slice(&bytes[..len]);
                if len == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(len) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut sink = Sink { inner: Short(Vec::new(), 6), torn: false };
        assert_eq!(sink.write(b"one\ntwo\nthree\n"), 2);
        sink.inner.1 = 100;
        assert_eq!(sink.write(b"four\n"), 0);
        assert_eq!(sink.inner.0, b"one\ntw\nfour\n");
    }
}
