// Message passing for the instructions that every machine of the target has.
#include "message_kernel.h"

const erwin::MessageKernel erwin::kMessageBaseline = erwin::kMessageKernel;
