// A fuzzer of the C interface. It makes a case from some bytes, runs it and checks the results.
//
// Built with -DERWIN_FUZZ=ON. `c_interface --seed S --cases N` runs the cases of the seeds S, S + 1, ..., which are the
// same on every machine, in a child process. If the child crashes or fails, this is reported as a finding, and a new
// child continues with the next seed. With libFuzzer (Clang, -DERWIN_SANITIZE=fuzzer,address,undefined) other command
// lines are passed to libFuzzer.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "cases.h"
#include "check.h"
#include "erwin.h"

namespace {

constexpr int64_t kBytes = 256;      // bytes of a case; all bytes after them count as 0
constexpr unsigned kSeconds = 300;   // time limit of a case
constexpr int kKinds = 32;

// In shared memory, so that it is still there when a child has ended.
struct Progress {
  uint64_t seed;
  uint64_t digest, of_case;
  char kind[64], detail[64], message[200];
  struct {
    char name[64];
    int64_t cases;
  } kinds[kKinds];
};

Progress local;
Progress* progress = &local;
bool threaded = false;

void run(const uint8_t* data, size_t size) {
  using Case = void (*)(fuzz::Choices&);
  // Some more often than others.
  constexpr Case kCases[] = {
      fuzz::tree_case,         fuzz::neighbors_case,         fuzz::attention_case,         fuzz::message_case,
      fuzz::tree_case,         fuzz::neighbors_case,         fuzz::attention_case,         fuzz::small_case,
      fuzz::bad_tree_case,     fuzz::bad_neighbors_case,     fuzz::bad_attention_case,     fuzz::bad_message_case,
  };
  fuzz::Choices choices(data, size, threaded);
  progress->of_case = 0;
  kCases[choices.below(threaded ? 4 : static_cast<int64_t>(std::size(kCases)))](choices);
}

void run_seed(uint64_t seed) {
  uint8_t bytes[kBytes];
  fuzz::Random random(seed);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.bits());
  progress->seed = seed;
  alarm(kSeconds);
  run(bytes, sizeof(bytes));
  progress->digest += progress->of_case * (2 * seed + 1);  // the sum does not depend on the order of cases
}

int drive(uint64_t seed, uint64_t cases) {
  void* const shared = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return 2;
  progress = static_cast<Progress*>(shared);
  std::map<std::string, std::pair<int64_t, uint64_t>> findings;  // the number of times, and the first seed
  for (uint64_t next = seed; next < seed + cases;) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child < 0) return 2;
    if (child == 0) {
      for (; next < seed + cases; ++next) run_seed(next);
      std::exit(0);  // the leak check runs here
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) break;
    std::string name = std::string(progress->kind) + (progress->detail[0] != 0 ? ", " : "") + progress->detail + ": ";
    if (progress->message[0] != 0) name += progress->message;
    else if (WIFSIGNALED(status)) name += strsignal(WTERMSIG(status));
    else name += "ended by a sanitizer";
    progress->message[0] = 0;
    findings.emplace(name, std::make_pair(0, progress->seed)).first->second.first += 1;
    next = progress->seed + 1;
  }
  int64_t all = 0;
  for (const auto& kind : progress->kinds) {
    if (kind.cases > 0) std::printf("%9" PRId64 " %s\n", kind.cases, kind.name);
  }
  for (const auto& [name, found] : findings) {
    std::printf("finding: %s (%" PRId64 " cases, the first: --seed %" PRIu64 ")\n", name.c_str(), found.first,
                found.second);
    all += found.first;
  }
  std::printf("digest of trees and neighbours: %016" PRIx64 "\n", progress->digest);
  std::printf("%" PRIu64 " cases from seed %" PRIu64 ", %" PRId64 " failed, %zu findings\n", cases, seed, all,
              findings.size());
  return findings.empty() ? 0 : 1;
}

// Runs the cases of seeds if the command line asks for that; otherwise returns -1.
int drive(int argc, char** argv) {
  uint64_t seed = 0, cases = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--threaded") == 0) threaded = true;
    else if (i + 1 < argc && std::strcmp(argv[i], "--seed") == 0) seed = std::strtoull(argv[++i], nullptr, 10);
    else if (i + 1 < argc && std::strcmp(argv[i], "--cases") == 0) cases = std::strtoull(argv[++i], nullptr, 10);
    else return -1;
  }
  return cases == 0 ? -1 : drive(seed, cases);
}

}  // namespace

void fuzz::stage(const char* kind, const char* detail) {
  const bool same = std::strcmp(progress->kind, kind) == 0 && detail[0] != 0;
  std::snprintf(progress->kind, sizeof(progress->kind), "%s", kind);
  std::snprintf(progress->detail, sizeof(progress->detail), "%s", detail);
  if (same) return;
  for (auto& known : progress->kinds) {
    if (known.name[0] == 0) std::snprintf(known.name, sizeof(known.name), "%s", kind);
    if (std::strcmp(known.name, kind) != 0) continue;
    known.cases += 1;
    return;
  }
}

void fuzz::fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(progress->message, sizeof(progress->message), format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "%s %s: %s (--seed %" PRIu64 " --cases 1)\n", progress->kind, progress->detail,
               progress->message, progress->seed);
  std::abort();
}

void fuzz::digest(const void* data, size_t bytes) {
  uint64_t hash = progress->of_case ^ 0xCBF29CE484222325u;
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, static_cast<const char*>(data) + i, sizeof(word));
    hash = (hash ^ word) * 0x100000001B3u;
    hash ^= hash >> 29;
  }
  progress->of_case = hash;
}

void fuzz::expect_ok(const char* call, int32_t status) {
  FUZZ_EXPECT(status == ERWIN_OK, "%s: status %d", call, status);
}

void fuzz::expect_refusal(int32_t status) {
  FUZZ_EXPECT(status > ERWIN_OK && status < ERWIN_INTERNAL_ERROR, "status %d", status);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  run(data, size);
  return 0;
}

#if defined(ERWIN_LIBFUZZER)
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  const int status = drive(*argc, *argv);
  if (status >= 0) std::exit(status);
  return 0;
}
#else
int main(int argc, char** argv) {
  const int status = drive(argc, argv);
  if (status < 0) std::fprintf(stderr, "usage: %s --seed S --cases N [--threaded]\n", argv[0]);
  return status < 0 ? 2 : status;
}
#endif
