//! The machines that a job runs on: one that goes wrong again and again gives its place to a spare one.

/// Jobs that a machine may spoil before it is left out.
const TRUST: u32 = 3;

/// A machine, e.g. `node7:8`.
#[derive(Clone, Debug)]
struct Host {
    name: String,
    /// Ranks that it takes, where the name says so.
    slots: Option<usize>,
    /// Jobs in which a rank of it was at fault.
    faults: u32,
}

/// Machines for a job, of which some are spare.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    all: Vec<Host>,
    needed: usize,
}

impl Hosts {
    /// These machines, in the order in which they are taken; the last `spares` wait.
    pub fn new(names: impl IntoIterator<Item = String>, spares: usize) -> Self {
        let host = |name: String| {
            let slots = name.rsplit_once(':').and_then(|(_, slots)| slots.parse().ok());
            Host { name, slots, faults: 0 }
        };
        let all: Vec<Host> = names.into_iter().map(host).collect();
        let needed = all.len().saturating_sub(spares);
        Self { all, needed }
    }

    fn trusted(&self) -> impl Iterator<Item = usize> {
        (0..self.all.len()).filter(|&host| self.all[host].faults < TRUST)
    }

    /// Those that the next job runs on.
    pub fn chosen(&self) -> Vec<&str> {
        self.trusted().take(self.needed).map(|host| self.all[host].name.as_str()).collect()
    }

    /// The machine of rank `rank` of `ranks`: ranks fill one after the other.
    fn of_rank(&self, rank: usize, ranks: usize) -> Option<usize> {
        let mut first = 0;
        for (place, host) in self.trusted().take(self.needed).enumerate() {
            let even = || ranks * (place + 1) / self.needed - ranks * place / self.needed;
            first += self.all[host].slots.unwrap_or_else(even);
            if rank < first {
                return Some(host);
            }
        }
        None
    }

    /// Rank `rank` of `ranks` has spoiled a job. Returns what that comes to, when it comes to anything.
    pub fn blame(&mut self, rank: usize, ranks: usize) -> Option<String> {
        let host = self.of_rank(rank, ranks)?;
        let spare = self.trusted().count() > self.needed;
        let Host { name, faults, .. } = &mut self.all[host];
        if *faults + 1 < TRUST {
            *faults += 1;
            return None;
        }
        if !spare {
            return Some(format!(
                "`{name}` (rank {rank}) was at fault {TRUST} times, and there is no spare for it"
            ));
        }
        *faults += 1;
        Some(format!("`{name}` (rank {rank}) was at fault {TRUST} times and is left out from now on"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_at_fault_again_and_again_is_replaced() {
        let mut hosts = Hosts::new(["a", "b", "c", "d"].map(String::from), 1);
        assert_eq!(hosts.chosen(), ["a", "b", "c"]);
        // Two ranks a machine.
        assert_eq!(hosts.blame(2, 6), None);
        assert_eq!(hosts.blame(5, 6), None);
        assert_eq!(hosts.blame(3, 6), None);
        let said = hosts.blame(2, 6).unwrap();
        assert!(said.contains("`b`") && said.contains("left out"), "{said}");
        assert_eq!(hosts.chosen(), ["a", "c", "d"]);
        // Rank 5 is on another machine now.
        assert_eq!(hosts.blame(5, 6), None);
        assert_eq!(hosts.blame(5, 6), None);
        let said = hosts.blame(5, 6).unwrap();
        assert!(said.contains("`d`") && said.contains("no spare"), "{said}");
        assert_eq!(hosts.chosen(), ["a", "c", "d"]);
        assert_eq!(Hosts::default().blame(0, 1), None);
    }

    #[test]
    fn slots_say_where_a_rank_is() {
        let hosts = Hosts::new(["a:8", "b:2", "c:8"].map(String::from), 1);
        assert_eq!(
            [0, 7, 8, 9, 10].map(|rank| hosts.of_rank(rank, 10)),
            [Some(0), Some(0), Some(1), Some(1), None]
        );
    }
}
