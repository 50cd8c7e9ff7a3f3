//! Pages for those who go first.

use std::collections::BTreeSet;

use super::{Model, Scheduler};
use crate::cache::{Page, Sequence, pages_for};

impl Scheduler {
    /// Lets a request that has no pages have those of its tokens: shared ones, restored ones, and room for the rest.
    /// Returns whether there is room.
    pub(super) fn start(&mut self, i: usize, model: &dyn Model) -> bool {
        let job = &self.jobs[i];
        let (ids, needed) = (job.ids[..job.cacheable()].to_vec(), pages_for(job.ids.len()));
        // Held before room is made, so that they stay.
        let pages = self.tree.find(&ids).pages;
        let missing = needed - pages.len();
        self.jobs[i].sequence = Sequence { len: 0, pages };
        // Each request before this one will want another page soon. The first one takes what it needs.
        let spare = self.jobs[..i].iter().filter(|job| job.is_running()).count();
        // Those behind the first one wait where the system has less than the limit by now.
        let wanted = self.pool.live() + missing + spare;
        let there = i == 0 || self.available.fits(wanted, self.counts.peak_pages);
        if !(there && self.make_room(missing + spare, i, model)) {
            self.jobs[i].sequence.truncate(0);
            return false;
        }
        let found = self.tree.find(&ids);
        let full = found.pages.len();
        let job = &mut self.jobs[i];
        (job.node, job.filed) = (found.node, full);
        let mut len = full * llamero_tensor::KV_PAGE + found.part.as_ref().map_or(0, |(_, common)| *common);
        let mut pages = found.pages;
        match job.saved.take().filter(|saved| saved.len > len) {
            Some(saved) => {
                len = saved.len;
                pages.extend(saved.pages[full..].iter().map(|page| self.pool.hold(model.restore_page(page))));
            }
            None => {
                let copy = |(page, _): (Page, usize)| self.pool.hold(model.copy_page(page.tensor()));
                pages.extend(found.part.map(copy));
            }
        }
        job.sequence = Sequence { len, pages };
        self.counts.cached += job.started(len) as u64;
        true
    }

    /// Makes room for `wanted` pages by giving up those kept for later, then by taking those of requests behind `i`, the last one
    /// first. Changes nothing where that would not do.
    pub(super) fn make_room(&mut self, wanted: usize, i: usize, model: &dyn Model) -> bool {
        if self.pool.free() >= wanted {
            return true;
        }
        if self.obtainable(i) < wanted {
            return false;
        }
        while self.pool.free() < wanted {
            if self.tree.evict() {
                continue;
            }
            let room = self.limits.saved.saturating_sub(self.saved_pages());
            let behind = self.jobs[i + 1..].iter_mut().rev().find(|job| job.is_running());
            let Some(job) = behind else { panic!("scheduler: {wanted} pages were thought to be obtainable") };
            job.pre_empt(room, model);
            self.counts.preemptions += 1;
        }
        true
    }

    /// Pages that are saved in the host's memory for those who wait.
    pub(crate) fn saved_pages(&self) -> usize {
        self.jobs.iter().filter_map(|job| job.saved.as_ref()).map(|saved| saved.pages.len()).sum()
    }

    /// Pages that nobody up to the request `i` holds.
    fn obtainable(&self, i: usize) -> usize {
        let held = self.jobs[..=i].iter().flat_map(|job| &job.sequence.pages).map(Page::identity);
        self.pool.limit() - held.collect::<BTreeSet<_>>().len()
    }
}
