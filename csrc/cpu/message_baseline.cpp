// Message passing for the instructions that every processor of the target architecture has.
#include "message_kernel.h"

const erwin::MessageKernel erwin::kMessageBaseline = erwin::kMessageKernel;
