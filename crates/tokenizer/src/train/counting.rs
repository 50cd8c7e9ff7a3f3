//! Splitting text into words and counting them, with several threads and within a cap of memory.

use super::counts::{WordCounts, WordList};
use super::runs::{Run, Runs};
use crate::{Error, Result, Split};
use rayon::prelude::*;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// How much text is read before it is handed out.
const BATCH_BYTES: usize = 4 << 20;
/// About how much text a thread takes at once.
const TASK_BYTES: usize = 1 << 20;

/// How words are counted.
pub(super) struct Counting {
    pub(super) split: Split,
    pub(super) threads: usize,
    /// When the tables of all threads take more, they go to disk.
    pub(super) memory: Option<usize>,
    pub(super) scratch: PathBuf,
}

/// What was counted.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) documents: u64,
    pub(super) bytes: u64,
    pub(super) words: u64,
    tables: Vec<WordCounts>,
    pub(super) runs: Runs,
}

/// Documents, and the parts of them that are to be counted.
struct Task<T> {
    documents: Arc<Vec<T>>,
    parts: Vec<(usize, Range<usize>)>,
}

/// What one thread has.
#[derive(Default)]
struct Worker {
    table: WordCounts,
    words: u64,
}

impl Counting {
    /// Counts the words of all documents; `progress` is called with the bytes read.
    pub(super) fn count<T: AsRef<str> + Send + Sync>(
        &self,
        docs: impl Iterator<Item = T>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Counted> {
        let threads = self.threads.max(1);
        let (sender, receiver) = sync_channel(2 * threads);
        let receiver = Arc::new(Mutex::new(receiver));
        let (runs, failed) = (Mutex::new(Runs::default()), AtomicBool::new(false));
        let counted = std::thread::scope(|scope| {
            let mut workers = Vec::new();
            for _ in 0..threads {
                let receiver = Arc::clone(&receiver);
                let work = || self.work(receiver, &runs, &failed);
                match std::thread::Builder::new().spawn_scoped(scope, work) {
                    Ok(worker) => workers.push(worker),
                    Err(error) => {
                        drop(sender);
                        return Err(Error::Threads { threads, reason: error.to_string() });
                    }
                }
            }
            // Only the workers have it now. If all have panicked, nothing can be sent any more.
            drop(receiver);
            let mut counted = self.hand_out(docs, progress, sender, &failed);
            for worker in workers {
                let Worker { table, words } =
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                counted.words += words;
                counted.tables.push(table);
            }
            Ok(counted)
        });
        Ok(Counted { runs: runs.into_inner().unwrap_or_else(PoisonError::into_inner), ..counted? })
    }

    fn hand_out<T: AsRef<str>>(
        &self,
        mut docs: impl Iterator<Item = T>,
        progress: &mut dyn FnMut(u64),
        sender: SyncSender<Task<T>>,
        failed: &AtomicBool,
    ) -> Counted {
        let mut counted = Counted::default();
        loop {
            let (mut documents, mut size) = (Vec::new(), 0);
            while size < BATCH_BYTES
                && let Some(doc) = docs.next()
            {
                size += doc.as_ref().len();
                documents.push(doc);
            }
            if documents.is_empty() || failed.load(Ordering::Relaxed) {
                return counted;
            }
            counted.documents += documents.len() as u64;
            counted.bytes += size as u64;
            let documents = Arc::new(documents);
            for parts in self.cut(&documents) {
                if sender.send(Task { documents: Arc::clone(&documents), parts }).is_err() {
                    return counted;
                }
            }
            progress(counted.bytes);
        }
    }

    /// Divides documents into tasks, and large documents where the split does not notice.
    fn cut<T: AsRef<str>>(&self, documents: &[T]) -> Vec<Vec<(usize, Range<usize>)>> {
        let (mut tasks, mut task, mut size) = (Vec::new(), Vec::new(), 0);
        for (index, document) in documents.iter().enumerate() {
            let text = document.as_ref();
            let mut start = 0;
            while start < text.len() {
                let wanted = (start + TASK_BYTES - size).min(text.len());
                let end = self.split.next_cut(text, text.ceil_char_boundary(wanted));
                task.push((index, start..end));
                size += end - start;
                start = end;
                if size >= TASK_BYTES {
                    tasks.push(std::mem::take(&mut task));
                    size = 0;
                }
            }
        }
        if !task.is_empty() {
            tasks.push(task);
        }
        tasks
    }

    /// Counts until there are no more tasks. After a failure, the rest is taken and left, so that nobody waits.
    fn work<T: AsRef<str>>(
        &self,
        tasks: Arc<Mutex<Receiver<Task<T>>>>,
        runs: &Mutex<Runs>,
        failed: &AtomicBool,
    ) -> Result<Worker> {
        let mut worker = Worker::default();
        let mut outcome = Ok(());
        loop {
            let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(task) = task else { return outcome.map(|()| worker) };
            if outcome.is_err() {
                continue;
            }
            for (index, range) in task.parts {
                for word in self.split.pieces(&task.documents[index].as_ref()[range]) {
                    worker.table.add(word.as_bytes(), 1);
                    worker.words += 1;
                }
                if self.memory.is_some_and(|memory| worker.table.memory() > memory / self.threads.max(1)) {
                    let list = std::mem::take(&mut worker.table).into_list();
                    let add = |run| runs.lock().unwrap_or_else(PoisonError::into_inner).add(run);
                    outcome = Run::write(&list, &self.scratch).and_then(add);
                    if outcome.is_err() {
                        failed.store(true, Ordering::Relaxed);
                        break;
                    }
                }
            }
        }
    }
}

impl Counted {
    /// Every word with its count over all threads; words with a count below `least` are left out. `room` is asked each
    /// time some more words are taken, with the bytes that they take.
    pub(super) fn into_words(
        mut self,
        counting: &Counting,
        least: u64,
        room: &dyn Fn(&WordList) -> Result<()>,
    ) -> Result<WordList> {
        if self.runs.added == 0 {
            let both = self.tables.into_par_iter().reduce(WordCounts::default, WordCounts::merged);
            let list = both.into_list();
            room(&list)?;
            if least <= 1 {
                return Ok(list);
            }
            let mut kept = WordList::default();
            list.iter().filter(|&(_, count)| count >= least).for_each(|(word, count)| kept.push(word, count));
            return Ok(kept);
        }
        for table in self.tables {
            if table.len() > 0 {
                self.runs.add(Run::write(&table.into_list(), &counting.scratch)?)?;
            }
        }
        let mut list = WordList::default();
        self.runs.merge(&mut |word, count| {
            if count >= least {
                list.push(word, count);
                if list.len().is_multiple_of(1 << 16) {
                    room(&list)?;
                }
            }
            Ok(())
        })?;
        Ok(list)
    }
}
