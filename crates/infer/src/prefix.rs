//! Pages that requests share: a tree over the tokens that they hold.
//!
//! A node is a page; the path from the root to it spells the tokens from the beginning of a sequence to the end of that page.
//! Only full pages have children. Nothing here depends on time: what was used last is told by a counter.

use std::collections::{BTreeMap, BTreeSet};

use llamero_tensor::KV_PAGE;

use crate::cache::Page;

/// A node's name. The root is [`ROOT`].
pub(crate) type NodeId = u64;

/// The beginning of every sequence.
pub(crate) const ROOT: NodeId = 0;

/// Pages by the tokens that they and the pages before them hold.
pub(crate) struct PrefixTree {
    nodes: BTreeMap<NodeId, Node>,
    /// Children of the root.
    first: Children,
    /// Nodes without children, by their last use.
    leaves: BTreeSet<(u64, NodeId)>,
    next: NodeId,
    clock: u64,
}

/// Nodes by the tokens of their page: those that begin alike are neighbours.
type Children = BTreeMap<Vec<u32>, NodeId>;

struct Node {
    parent: NodeId,
    ids: Vec<u32>,
    page: Page,
    children: Children,
    /// When it was last found or put in.
    used: u64,
}

/// What the tree has of a sequence.
pub(crate) struct Found {
    /// Full pages from the beginning on.
    pub(crate) pages: Vec<Page>,
    /// The node of the last of them.
    pub(crate) node: NodeId,
    /// A page that goes on with some more of the tokens, and how many.
    pub(crate) part: Option<(Page, usize)>,
}

impl PrefixTree {
    /// A tree without pages.
    pub(crate) fn new() -> Self {
        let (nodes, first, leaves) = (BTreeMap::new(), Children::new(), BTreeSet::new());
        Self { nodes, first, leaves, next: ROOT + 1, clock: 0 }
    }

    /// The longest beginning of `ids` that there are pages of.
    pub(crate) fn find(&mut self, ids: &[u32]) -> Found {
        let (mut pages, mut node, mut rest) = (Vec::new(), ROOT, ids);
        while let Some((page, after)) = rest.split_at_checked(KV_PAGE)
            && let Some(&child) = self.children(node).get(page)
        {
            pages.push(self.touch(child));
            (node, rest) = (child, after);
        }
        let part = self.closest(node, rest).map(|(child, common)| (self.touch(child), common));
        Found { pages, node, part }
    }

    /// Puts the page of `ids` behind `parent`. Where there is one already, that one is kept: what it holds has the same bits.
    /// One that holds only a beginning of `ids` goes. Returns the node and the page to use.
    pub(crate) fn insert(&mut self, parent: NodeId, ids: &[u32], page: Page) -> (NodeId, Page) {
        let fits = (1..=KV_PAGE).contains(&ids.len());
        assert!(fits, "prefix tree: {} tokens in a page of {KV_PAGE}", ids.len());
        if let Some((child, common)) = self.closest(parent, ids)
            && common == self.nodes[&child].ids.len()
        {
            if common == ids.len() {
                return (child, self.touch(child));
            }
            self.remove(child);
        }
        let node = self.next;
        self.next += 1;
        self.clock += 1;
        self.children_mut(parent).insert(ids.to_vec(), node);
        if let Some(before) = self.nodes.get(&parent) {
            self.leaves.remove(&(before.used, parent));
        }
        let (ids, used) = (ids.to_vec(), self.clock);
        self.leaves.insert((used, node));
        self.nodes.insert(node, Node { parent, ids, page: page.clone(), children: Children::new(), used });
        (node, page)
    }

    /// Puts the page of the last tokens of a sequence behind `parent`, unless another one begins with them.
    pub(crate) fn insert_last(&mut self, parent: NodeId, ids: &[u32], page: Page) {
        match self.closest(parent, ids) {
            Some((child, common)) if common == ids.len() => drop(self.touch(child)),
            _ => drop(self.insert(parent, ids, page)),
        }
    }

    /// Gives up the page that was not used for longest, of those that nobody else holds and no other page follows.
    /// Returns whether there was one.
    pub(crate) fn evict(&mut self) -> bool {
        // Few are passed over: a running sequence holds one leaf at most.
        let idle = self.leaves.iter().map(|(_, id)| *id).find(|id| !self.nodes[id].page.is_shared());
        if let Some(id) = idle {
            self.remove(id);
        }
        idle.is_some()
    }

    /// Pages that nobody else holds.
    pub(crate) fn idle(&self) -> usize {
        self.nodes.values().filter(|node| !node.page.is_shared()).count()
    }

    /// Checks that nodes without children are known as such, in the order of their use.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let leaves = self.nodes.iter().filter(|(_, node)| node.children.is_empty());
        assert_eq!(self.leaves, leaves.map(|(id, node)| (node.used, *id)).collect());
    }

    fn children(&self, node: NodeId) -> &Children {
        if node == ROOT { &self.first } else { &self.nodes[&node].children }
    }

    fn children_mut(&mut self, node: NodeId) -> &mut Children {
        if node == ROOT {
            return &mut self.first;
        }
        match self.nodes.get_mut(&node) {
            Some(node) => &mut node.children,
            None => panic!("prefix tree: no node {node}"),
        }
    }

    /// The child whose tokens begin with most of `ids`, and how many that is, if any.
    fn closest(&self, node: NodeId, ids: &[u32]) -> Option<(NodeId, usize)> {
        let children = self.children(node);
        let common = |(key, child): (&Vec<u32>, &NodeId)| {
            (*child, key.iter().zip(ids).take_while(|(a, b)| a == b).count())
        };
        // In the order of the keys, the one that agrees longest stands beside the place of `ids`.
        let before = children.range(..=ids.to_vec()).next_back().map(common);
        let after = children.range(ids.to_vec()..).next().map(common);
        let best = match (before, after) {
            (Some(a), Some(b)) => Some(if b.1 > a.1 { b } else { a }),
            (a, b) => a.or(b),
        };
        best.filter(|(_, common)| *common > 0)
    }

    fn touch(&mut self, node: NodeId) -> Page {
        self.clock += 1;
        match self.nodes.get_mut(&node) {
            Some(found) => {
                if self.leaves.remove(&(found.used, node)) {
                    self.leaves.insert((self.clock, node));
                }
                found.used = self.clock;
                found.page.clone()
            }
            None => panic!("prefix tree: no node {node}"),
        }
    }

    fn remove(&mut self, node: NodeId) {
        let Some(gone) = self.nodes.remove(&node) else { return };
        self.leaves.remove(&(gone.used, node));
        self.children_mut(gone.parent).remove(&gone.ids);
        if let Some(before) = self.nodes.get(&gone.parent)
            && before.children.is_empty()
        {
            self.leaves.insert((before.used, gone.parent));
        }
    }
}
