/* Five tokens go into a paged KV cache, then attend to it causally. All keys are equal and the value of token t
 * is t: the row of token t is the mean of 0 .. t, which is t / 2. */
#include <fulmen/fulmen.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 5, HEADS = 4, KV_HEADS = 2, DIM = 64, PAGES = 3, PAGE_SIZE = 4 };
static float q[TOKENS][HEADS][DIM], k[TOKENS][KV_HEADS][DIM], v[TOKENS][KV_HEADS][DIM], o[TOKENS][HEADS][DIM];
static float k_cache[PAGES][PAGE_SIZE][KV_HEADS][DIM], v_cache[PAGES][PAGE_SIZE][KV_HEADS][DIM];
static int32_t page_ids[2] = {2, 0}, qo_indptr[2] = {0, TOKENS}, kv_len[1] = {TOKENS};

static fulmen_tensor rows(void* data, int64_t n, int64_t heads) { /* [n, heads, DIM] */
  return (fulmen_tensor){.data = data, .ndim = 3, .shape = {n, heads, DIM}, .stride = {heads * DIM, DIM, 1}};
}
static fulmen_tensor cache(void* data) {
  return (fulmen_tensor){.data = data, .ndim = 4, .shape = {PAGES, PAGE_SIZE, KV_HEADS, DIM},
                         .stride = {PAGE_SIZE * KV_HEADS * DIM, KV_HEADS * DIM, DIM, 1}};
}
static fulmen_tensor ints(int32_t* data, int64_t n) {
  return (fulmen_tensor){.data = data, .dtype = FULMEN_I32, .ndim = 1, .shape = {n}, .stride = {1}};
}
static void check(fulmen_status status) {
  if (status != FULMEN_OK) fprintf(stderr, "%s\n", fulmen_last_error()), exit(1);
}

int main(void) {
  for (int i = 0; i < TOKENS * KV_HEADS * DIM; ++i) (&v[0][0][0])[i] = (float)(i / (KV_HEADS * DIM));
  /* README begins */
  fulmen_context* context;
  check(fulmen_context_create(NULL, &context));
  FULMEN_INIT(fulmen_kv_table, table);
  table.table = (fulmen_tensor){.data = page_ids, .dtype = FULMEN_I32, .ndim = 2, .shape = {1, 2}, .stride = {2, 1}};

  FULMEN_INIT(fulmen_append_kv_args, append);
  append.k = rows(k, TOKENS, KV_HEADS), append.v = rows(v, TOKENS, KV_HEADS);
  append.k_cache = cache(k_cache), append.v_cache = cache(v_cache);
  append.qo_indptr = ints(qo_indptr, 2), append.kv_len = ints(kv_len, 1), append.table = table;
  check(fulmen_append_kv(context, &append, NULL));

  FULMEN_INIT(fulmen_attention_spec, spec); /* what is compiled; 0 is f32 */
  spec.head_dim_qk = spec.head_dim_vo = DIM;
  FULMEN_INIT(fulmen_attention_limits, limits); /* upper bounds */
  limits.max_requests = 1, limits.max_rows = TOKENS, limits.max_kv_len = 64, limits.num_groups = 1;
  limits.groups[0] = (fulmen_attention_group){sizeof limits.groups[0], HEADS, KV_HEADS, 1 /* causal */, -1 /* no window */};
  fulmen_attention* attention;
  check(fulmen_attention_create(context, &spec, &limits, &attention));
  FULMEN_INIT(fulmen_attention_sizes, sizes);
  check(fulmen_attention_sizes_of(attention, &sizes));
  void *plan = aligned_alloc(256, sizes.plan_bytes), *scratch = aligned_alloc(256, sizes.scratch_bytes);
  check(fulmen_scratch_init(context, scratch, sizes.scratch_bytes, NULL));

  FULMEN_INIT(fulmen_attention_lengths, lengths); /* once a step, for all layers */
  lengths.levels[0].struct_size = sizeof lengths.levels[0];
  lengths.levels[0].qo_indptr = append.qo_indptr, lengths.levels[0].kv_len = append.kv_len;
  check(fulmen_attention_plan(attention, &lengths, plan, NULL));

  FULMEN_INIT(fulmen_attention_tensors, layer); /* once a layer */
  layer.page_size = PAGE_SIZE;
  layer.q = rows(q, TOKENS, HEADS), layer.o = rows(o, TOKENS, HEADS);
  layer.k = append.k_cache, layer.v = append.v_cache, layer.kv[0] = table;
  check(fulmen_attention_run(attention, &layer, plan, scratch, NULL));
  for (int t = 0; t < TOKENS; ++t) printf("token %d: %.3f\n", t, o[t][0][0]);
  /* README ends */

  fulmen_attention_destroy(attention), fulmen_context_destroy(context);
  free(plan), free(scratch);
}
