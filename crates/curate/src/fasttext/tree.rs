//! The tree of hierarchical softmax: Huffman's, over the labels' counts.

use super::{log, sigmoid};

/// Inner nodes are numbered from the number of labels on; the last is the root.
#[derive(Debug)]
pub(super) struct Tree {
    /// Of each inner node, its left and its right child.
    children: Vec<[usize; 2]>,
}

impl Tree {
    /// The tree over labels of these counts, which are sorted from the most frequent on. The order in which equal counts are
    /// joined is part of the file format.
    pub(super) fn new(counts: &[i64]) -> Result<Tree, String> {
        /// Stands for "no such node yet".
        const ABSENT: i64 = 1_000_000_000_000_000;
        let labels = counts.len();
        if let Some(count) = counts.iter().find(|&&count| !(0..ABSENT / 1_000_000).contains(&count)) {
            return Err(format!("a label that was seen {count} times"));
        }
        if counts.windows(2).any(|pair| pair[0] < pair[1]) {
            return Err("labels that are not sorted by how often they were seen".to_owned());
        }
        let mut weights = counts.to_vec();
        let mut children = Vec::with_capacity(labels.saturating_sub(1));
        let (mut leaves, mut inner) = (labels, labels);
        for _ in 1..labels {
            let mut smallest = || {
                let node = weights.get(inner).copied().unwrap_or(ABSENT);
                if leaves > 0 && weights[leaves - 1] < node {
                    leaves -= 1;
                    leaves
                } else {
                    inner += 1;
                    inner - 1
                }
            };
            let pair = [smallest(), smallest()];
            weights.push(weights[pair[0]] + weights[pair[1]]);
            children.push(pair);
        }
        Ok(Tree { children })
    }

    /// Log-probabilities of the labels, given the product of the hidden state with each inner node's row.
    pub(super) fn log_probabilities(&self, labels: usize, product: impl Fn(usize) -> f32) -> Vec<f32> {
        let mut scores = vec![0.0; labels];
        // Parents come after their children, so going backwards meets each node with its own score known.
        let mut inner = vec![0.0_f32; self.children.len()];
        for (node, pair) in self.children.iter().enumerate().rev() {
            let right = sigmoid(product(node));
            for (child, share) in pair.iter().zip([1.0 - right, right]) {
                let score = inner[node] + log(share);
                match child.checked_sub(labels) {
                    Some(at) => inner[at] = score,
                    None => scores[*child] = score,
                }
            }
        }
        scores
    }
}
