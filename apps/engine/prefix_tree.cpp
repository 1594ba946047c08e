#include "engine/prefix_tree.hpp"

namespace fulmen::engine {

PrefixTree::PrefixTree(PageAllocator& pages, int32_t page_size) : pages_(pages), page_size_(page_size) {}
PrefixTree::~PrefixTree() { clear(); }

namespace {

std::vector<int32_t> block_of(std::span<const int32_t> tokens, size_t index, size_t page_size) {
  const auto block = tokens.subspan(index * page_size, page_size);
  return {block.begin(), block.end()};
}

}  // namespace

void PrefixTree::touch(Node* node) {
  const bool leaf = leaves_.erase(node) > 0;
  node->last_use = ++clock_;
  if (leaf) leaves_.insert(node);
}

std::vector<int32_t> PrefixTree::match(std::span<const int32_t> tokens) {
  std::vector<int32_t> found;
  Node* node = &root_;
  for (size_t i = 0; (i + 1) * page_size_ <= tokens.size(); ++i) {
    const auto child = node->children.find(block_of(tokens, i, page_size_));
    if (child == node->children.end()) break;
    node = child->second.get();
    touch(node);
    pages_.retain(node->page);
    found.push_back(node->page);
  }
  return found;
}

int64_t PrefixTree::match_length(std::span<const int32_t> tokens) const {
  const Node* node = &root_;
  size_t i = 0;
  for (; (i + 1) * page_size_ <= tokens.size(); ++i) {
    const auto child = node->children.find(block_of(tokens, i, page_size_));
    if (child == node->children.end()) break;
    node = child->second.get();
  }
  return static_cast<int64_t>(i) * page_size_;
}

void PrefixTree::insert(std::span<const int32_t> tokens, std::span<const int32_t> pages) {
  Node* node = &root_;
  for (size_t i = 0; i < pages.size(); ++i) {
    const auto [child, added] = node->children.try_emplace(block_of(tokens, i, page_size_));
    if (added) {
      leaves_.erase(node);  // no longer a leaf
      child->second = std::make_unique<Node>();
      child->second->page = pages[i];
      child->second->last_use = ++clock_;
      child->second->parent = node;
      child->second->self = child;
      pages_.retain(pages[i]);
      leaves_.insert(child->second.get());
      ++num_nodes_;
    } else if (child->second->page != pages[i]) {
      return;  // computed twice at the same time; see the invariant
    }
    node = child->second.get();
  }
}

void PrefixTree::evict(int32_t wanted) {
  for (auto it = leaves_.begin(); it != leaves_.end() && pages_.num_free() < wanted;) {
    Node* node = *it;
    if (pages_.references(node->page) > 1) {
      ++it;
      continue;
    }
    Node* parent = node->parent;
    leaves_.erase(it);
    pages_.release(node->page);
    --num_nodes_;
    parent->children.erase(node->self);
    if (parent != &root_ && parent->children.empty()) leaves_.insert(parent);
    it = leaves_.begin();  // the parent may be older than what stands here
  }
}

void PrefixTree::release_subtree(Node& node) {
  for (auto& [block, child] : node.children) {
    release_subtree(*child);
    pages_.release(child->page);
  }
  node.children.clear();
}

void PrefixTree::clear() {
  leaves_.clear();
  release_subtree(root_);
  num_nodes_ = 0;
}

int32_t PrefixTree::num_unused() const {
  const auto count = [&](const auto& self, const Node& node) -> int32_t {
    int32_t unused = 0;
    for (const auto& [block, child] : node.children)
      unused += (pages_.references(child->page) == 1) + self(self, *child);
    return unused;
  };
  return count(count, root_);
}

}  // namespace fulmen::engine
