// gloo::allreduce of floats over its TCP transport, in place, under the loop of bench.h.
// Arguments: control file, rendezvous directory, rank, ranks.
#include "bench.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include <gloo/allreduce.h>
#include <gloo/config.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>

static std::shared_ptr<gloo::rendezvous::Context> context;

// The bench asks for no other collective.
static void all_reduce(int, int, float*, float* values, size_t count) {
  using Sum = void (*)(void*, const void*, const void*, size_t);
  gloo::AllreduceOptions options(context);
  options.setOutput(values, count);
  options.setReduceFunction(static_cast<Sum>(&gloo::sum<float>));
  gloo::allreduce(options);
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const int rank = std::atoi(argv[3]), ranks = std::atoi(argv[4]);
  try {
    gloo::transport::tcp::attr where;
    where.hostname = "127.0.0.1";
    auto device = gloo::transport::tcp::CreateDevice(where);
    gloo::rendezvous::FileStore store(argv[2]);
    context = std::make_shared<gloo::rendezvous::Context>(rank, ranks);
    context->connectFullMesh(store, device);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gloo: %s\n", error.what());
    return 1;
  }
  char version[64];
  std::snprintf(version, sizeof version, "Gloo %d.%d.%d", GLOO_VERSION_MAJOR, GLOO_VERSION_MINOR,
                GLOO_VERSION_PATCH);
  return bench_serve(argv[1], rank, ranks, version, all_reduce);
}
