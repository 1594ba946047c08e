#include "cuda/pinned_ring.hpp"

#include <algorithm>

namespace fulmen::cuda {
namespace {

constexpr int64_t kReservedSlots = 4;   // plans on their way at once, of an engine that runs a few steps ahead
constexpr int64_t kMostSlots = 256;
constexpr unsigned kPortable = 1, kMapped = 2;
constexpr unsigned kNoTiming = 2;
constexpr int kRelaxedCapture = 2;

// Queries and allocations are harmless to a capture that another thread has begun in global mode, but the driver would
// end it unless this thread says so.
class RelaxedCapture {
 public:
  RelaxedCapture() { exchange(); }
  ~RelaxedCapture() { exchange(); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  void exchange() {
    if (driver().ThreadExchangeCaptureMode != nullptr) driver().ThreadExchangeCaptureMode(&mode_);
  }
  int mode_ = kRelaxedCapture;
};

std::unique_ptr<PinnedRing::Slot> make_slot(Ctx context, size_t bytes) {
  auto slot = std::make_unique<PinnedRing::Slot>();
  void* data = nullptr;
  FULMEN_CUDA(MemHostAlloc(&data, bytes, kPortable | kMapped));
  slot->data = static_cast<char*>(data);
  slot->bytes = bytes;
  slot->context = context;
  FULMEN_CUDA(EventCreate(&slot->event, kNoTiming));
  return slot;
}

}  // namespace

PinnedRing::Slot::~Slot() {
  const Driver* api = try_driver(nullptr);
  if (api == nullptr || api->CtxPush(context) != 0) return;  // forked, or the CUDA context is gone and the memory with it
  if (event != nullptr) {
    if (in_flight) api->EventSynchronize(event);
    api->EventDestroy(event);
  }
  if (data != nullptr) api->MemFreeHost(data);
  Ctx popped = nullptr;
  api->CtxPop(&popped);
}

PinnedRing::~PinnedRing() = default;

void PinnedRing::reserve(Ctx context, size_t bytes) {
  const RelaxedCapture relaxed;
  const std::lock_guard<std::mutex> lock(mutex_);
  auto fitting = std::count_if(slots_.begin(), slots_.end(),
                               [&](const auto& slot) { return slot->context == context && slot->bytes >= bytes; });
  for (; fitting < kReservedSlots && num_slots_ < kMostSlots; ++fitting, ++num_slots_) {
    slots_.push_front(make_slot(context, bytes));
  }
}

std::unique_ptr<PinnedRing::Slot> PinnedRing::acquire(Ctx context, size_t bytes) {
  const RelaxedCapture relaxed;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto oldest = std::find_if(slots_.begin(), slots_.end(), [&](const auto& slot) {
    return slot->context == context && slot->bytes >= bytes;
  });
  const bool none = oldest == slots_.end();
  const bool busy = !none && (*oldest)->in_flight && driver().EventQuery((*oldest)->event) != 0;
  if (none || (busy && num_slots_ < kMostSlots)) {
    auto slot = make_slot(context, bytes);
    ++num_slots_;
    return slot;
  }
  if (busy) FULMEN_CUDA(EventSynchronize((*oldest)->event));
  std::unique_ptr<Slot> slot = std::move(*oldest);
  slots_.erase(oldest);
  slot->in_flight = false;
  return slot;
}

void PinnedRing::release(std::unique_ptr<Slot> slot, Stream stream) {
  slot->in_flight = true;
  const Result result = driver().EventRecord(slot->event, stream);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (result != 0) {
    // Its reader can't be waited for: the memory is left to the process's end rather than handed out again.
    [[maybe_unused]] const Slot* left = slot.release();
    --num_slots_;
    check(result, "cuEventRecord");
  }
  slots_.push_back(std::move(slot));
}

void PinnedRing::release_unread(std::unique_ptr<Slot> slot) {
  const std::lock_guard<std::mutex> lock(mutex_);
  slots_.push_front(std::move(slot));
}

}  // namespace fulmen::cuda
