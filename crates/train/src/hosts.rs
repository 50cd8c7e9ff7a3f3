//! The machines that a job runs on: one that goes wrong again and again gives its place to a spare one.

/// Times that a machine may be at fault before it is left out.
const TRUST: u32 = 3;

/// Machines for a job, of which some are spare.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Name, and how often it was at fault.
    all: Vec<(String, u32)>,
    needed: usize,
}

impl Hosts {
    /// These machines, in the order in which they are taken; the last `spares` wait.
    pub fn new(names: impl IntoIterator<Item = String>, spares: usize) -> Self {
        let all: Vec<(String, u32)> = names.into_iter().map(|name| (name, 0)).collect();
        let needed = all.len().saturating_sub(spares);
        Self { all, needed }
    }

    /// Those that the next job runs on.
    pub fn chosen(&self) -> Vec<&str> {
        let trusted = self.all.iter().filter(|(_, faults)| *faults < TRUST);
        trusted.take(self.needed).map(|(name, _)| name.as_str()).collect()
    }

    /// Rank `rank` of `ranks` was at fault; ranks fill one machine after the other. Returns what that comes to, when it comes to
    /// anything.
    pub fn blame(&mut self, rank: usize, ranks: usize) -> Option<String> {
        let trusted = |(_, (_, faults)): &(usize, &(String, u32))| *faults < TRUST;
        let place = rank * self.needed / ranks.max(1);
        let host = self.all.iter().enumerate().filter(trusted).nth(place).map(|(host, _)| host)?;
        let left = self.all.iter().filter(|(_, faults)| *faults < TRUST).count();
        let (name, faults) = &mut self.all[host];
        if *faults + 1 < TRUST {
            *faults += 1;
            return None;
        }
        if left <= self.needed {
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
}
