// The kinds of cases. Each reads its choices, calls the library and checks the results.
#ifndef ERWIN_FUZZ_CASES_H_
#define ERWIN_FUZZ_CASES_H_

#include <iterator>

#include "choices.h"

namespace fuzz {

void tree_case(Choices& choices);
void neighbors_case(Choices& choices);
void attention_case(Choices& choices);
void message_case(Choices& choices);
void small_case(Choices& choices);  // entry points that need no more than an array

// The same kinds with one bad argument, which must be refused.
void bad_tree_case(Choices& choices);
void bad_neighbors_case(Choices& choices);
void bad_attention_case(Choices& choices);
void bad_message_case(Choices& choices);

// One way to spoil the arguments of a valid call.
template <typename Call>
struct Fault {
  const char* name;
  void (*spoil)(Call& call);
};

template <typename Call, size_t N>
const char* spoil(Choices& choices, const Fault<Call> (&faults)[N], Call& call) {
  const Fault<Call>& fault = faults[choices.below(N)];
  fault.spoil(call);
  return fault.name;
}

}  // namespace fuzz

#endif  // ERWIN_FUZZ_CASES_H_
