// Which pages hold the keys and values of which token prefixes. A node is one full page; the path from the root spells
// the tokens before it. Requests with a common beginning find its pages here instead of computing them again.
//
// Invariant: a request that holds a node's page holds the pages of all its ancestors. So the pages that nobody uses
// form whole subtrees, and dropping leaves, least recently used first, can free every one of them.
#pragma once

#include "engine/pages.hpp"

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

namespace fulmen::engine {

class PrefixTree {
 public:
  PrefixTree(PageAllocator& pages, int32_t page_size);
  ~PrefixTree();

  /// Pages of the longest known prefix of `tokens`, whole pages only; each is retained for the caller.
  std::vector<int32_t> match(std::span<const int32_t> tokens);
  /// How many tokens match() would find.
  int64_t match_length(std::span<const int32_t> tokens) const;
  /// Remembers that pages[i] holds tokens [i * page_size, (i + 1) * page_size). Where another page is already known for
  /// the same tokens, that one stays, and what follows in `pages` is not remembered.
  void insert(std::span<const int32_t> tokens, std::span<const int32_t> pages);
  /// Forgets pages that no request uses until `wanted` are free or none is left.
  void evict(int32_t wanted);
  void clear();

  int32_t num_pages() const { return num_nodes_; }
  /// Pages that evict could free.
  int32_t num_unused() const;

 private:
  struct Node;
  using Children = std::map<std::vector<int32_t>, std::unique_ptr<Node>>;
  struct Node {
    int32_t page = -1;
    uint64_t last_use = 0;
    Node* parent = nullptr;
    Children children;
    Children::iterator self;  // in parent->children
  };
  struct Older {
    bool operator()(const Node* a, const Node* b) const {
      return a->last_use != b->last_use ? a->last_use < b->last_use : a < b;
    }
  };

  void touch(Node* node);
  void release_subtree(Node& node);

  PageAllocator& pages_;
  int32_t page_size_;
  Node root_;
  std::set<Node*, Older> leaves_;
  uint64_t clock_ = 0;
  int32_t num_nodes_ = 0;
};

}  // namespace fulmen::engine
